#!/usr/bin/env bash
# Writes the messages and stubs of agent.proto into the folder that is named, by ts-proto; protoc is that of grpcio-tools.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
out=${1:-src/generated}
mkdir -p "$out"
"${HMARL_PYTHON:-../../.venv/bin/python}" -m grpc_tools.protoc -I ../../proto --plugin=protoc-gen-ts_proto=node_modules/.bin/protoc-gen-ts_proto \
  --ts_proto_out="$out" --ts_proto_opt=outputServices=grpc-js,forceLong=bigint,esModuleInterop=true,snakeToCamel=true,importSuffix=.js,exportCommonSymbols=false,useExactTypes=false,unrecognizedEnum=false,oneof=unions-value,env=both \
  hmarl/agent/v1/agent.proto
