"""hmarl's protocols, one protobuf package a folder."""
