"""What agents and clients record, as protobuf messages in MCAP files."""
