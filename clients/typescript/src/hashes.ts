import { blake2b } from "@noble/hashes/blake2.js";
import { sha256 } from "@noble/hashes/sha2.js";
import { bytesToHex, utf8ToBytes } from "@noble/hashes/utils.js";

/** BLAKE2b of 8 bytes, little-endian: what keys and counters of noise are made of. */
export function hash64(text: string): bigint {
  const digest = blake2b(utf8ToBytes(text), { dkLen: 8 });
  return new DataView(digest.buffer, digest.byteOffset, 8).getBigUint64(0, true);
}

export function sha256Hex(content: Uint8Array): string {
  return bytesToHex(sha256(content));
}
