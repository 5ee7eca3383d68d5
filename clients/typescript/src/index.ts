/** What runs in Node and in the browser alike: policies in this process. `hmarl-client/node` adds the client over gRPC. */
export * from "./agent.ts";
export * from "./bundle.ts";
export * from "./errors.ts";
export * from "./fallback.ts";
export { hash64, sha256Hex } from "./hashes.ts";
export * from "./local.ts";
export * from "./manifest.ts";
export * from "./noise.ts";
