/** Bundles: what leaves the trainer. Nothing is used whose hash has not been compared. */
import { BundleError, UsageError } from "./errors.ts";
import { sha256Hex } from "./hashes.ts";
import { type AgentModel, type Manifest, SCHEMA_VERSION } from "./manifest.ts";

/** Reads a file of a bundle by its name, e.g. `agents/agent_0.onnx`. */
export type ReadFile = (name: string) => Promise<Uint8Array>;

export class Bundle {
  readonly manifest: Manifest;
  /** SHA-256 of manifest.json, which lists the hash of every other file. */
  readonly sha256: string;
  readonly #read: ReadFile;

  private constructor(manifest: Manifest, sha256: string, read: ReadFile) {
    this.manifest = manifest;
    this.sha256 = sha256;
    this.#read = read;
  }

  /** Open a bundle. `sha256`: the only one that is taken, e.g. one that was released; any unless given. */
  static async open(read: ReadFile, sha256?: string): Promise<Bundle> {
    const content = await read("manifest.json");
    const found = sha256Hex(content);
    const written = new TextDecoder().decode(await read("manifest.sha256")).slice(0, 64);
    for (const expected of sha256 === undefined ? [written] : [written, sha256]) {
      if (found !== expected) throw new BundleError(`manifest.json: got SHA-256 ${found}, expected ${expected}`);
    }
    const manifest = JSON.parse(new TextDecoder().decode(content)) as Manifest;
    if (manifest.schema_version !== SCHEMA_VERSION) {
      throw new BundleError(`schema_version: got ${manifest.schema_version}, this client reads ${SCHEMA_VERSION}`);
    }
    return new Bundle(manifest, found, read);
  }

  /** A file's content, once its hash is the manifest's. */
  async file(name: string): Promise<Uint8Array> {
    const expected = this.manifest.files[name];
    if (expected === undefined) throw new BundleError(`${name}: the manifest lists no such file`);
    const content = await this.#read(name);
    const found = sha256Hex(content);
    if (found !== expected) throw new BundleError(`${name}: got SHA-256 ${found}, expected ${expected}`);
    return content;
  }

  /** The manifest's entry of an agent; `like` names the interchangeable one by whose graph an untrained one acts. */
  agent(id: string, like?: string): AgentModel {
    const known = this.manifest.agents.find((agent) => agent.id === (like ?? id));
    if (known === undefined) {
      const ids = this.manifest.agents.map((agent) => agent.id).join(", ");
      throw new UsageError(`agent: got '${like ?? id}', expected one of ${ids}`);
    }
    if (like === undefined) return known;
    if (!known.interchangeable) throw new UsageError(`like: got '${like}', which is not interchangeable`);
    return { ...known, id };
  }
}

/** Reads the bundle that lies below a URL, in the browser. */
export function filesBelow(url: string | URL): ReadFile {
  return async (name) => {
    const response = await fetch(new URL(name, `${String(url).replace(/\/*$/, "")}/`));
    if (!response.ok) throw new BundleError(`${name}: got ${response.status} from ${response.url}`);
    return new Uint8Array(await response.arrayBuffer());
  };
}
