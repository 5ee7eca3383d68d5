/** A real hmarl-agent, which can be frozen, killed and started again at the same address. */
import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { fileURLToPath } from "node:url";
import { createInterface } from "node:readline";

export const ROOT = fileURLToPath(new URL("../../../../", import.meta.url)); // from dist/test
export const PYTHON = process.env["HMARL_PYTHON"] ?? `${ROOT}.venv/bin/python`;
export const VECTORS = `${ROOT}proto/conformance/`;
export const BUNDLE = `${VECTORS}bundle`;

export class AgentProcess {
  address = "127.0.0.1:0";
  #process: ChildProcess | undefined;
  readonly #agent: string;

  constructor(agent: string) {
    this.#agent = agent;
  }

  async start(): Promise<this> {
    const options = ["--agent", this.#agent, "--listen", this.address, "--json", "--log-level", "error"];
    const child = spawn(PYTHON, ["-m", "hmarl.runtime.commands.agent", BUNDLE, ...options], {
      stdio: ["ignore", "pipe", "inherit"],
    });
    this.#process = child;
    const lines = createInterface({ input: child.stdout });
    const [line] = (await Promise.race([once(lines, "line"), once(child, "exit")])) as [string | number];
    if (typeof line !== "string") throw new Error(`hmarl-agent ended with ${line}`);
    this.address = (JSON.parse(line) as { address: string }).address;
    return this;
  }

  freeze(): void {
    this.#process?.kill("SIGSTOP");
  }

  thaw(): void {
    this.#process?.kill("SIGCONT");
  }

  async kill(): Promise<void> {
    const child = this.#process;
    this.#process = undefined;
    if (child === undefined) return;
    child.kill("SIGKILL");
    if (child.exitCode === null && child.signalCode === null) await once(child, "exit");
  }
}
