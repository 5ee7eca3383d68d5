/** One gRPC connection to an agent: unary calls, and acts over a stream. */
import {
  type ChannelCredentials, type ClientDuplexStream, type ClientUnaryCall, Metadata, type ServiceError, status,
} from "@grpc/grpc-js";

import {
  type ActRequest, type ActResponse, AgentServiceClient, type EndEpisodeResponse, type GetAgentInfoResponse,
  type StartEpisodeRequest, type StartEpisodeResponse, type StreamActRequest, type StreamActResponse,
} from "./generated/hmarl/agent/v1/agent.ts";

/** A call that failed: a gRPC status code, and what was said. */
export class CallFailed extends Error {
  readonly code: status;

  constructor(code: status, details: string) {
    super(details);
    this.code = code;
  }
}

const OPTIONS = {
  // gRPC waits up to two minutes between attempts to connect unless told otherwise: too long for a control loop.
  "grpc.initial_reconnect_backoff_ms": 50,
  "grpc.max_reconnect_backoff_ms": 500,
  "grpc.keepalive_time_ms": 2000,
  "grpc.keepalive_timeout_ms": 2000,
  "grpc.enable_retries": 0, // the client decides what is asked again
  "grpc.use_local_subchannel_pool": 1, // a new channel means a new connection
  "grpc.max_receive_message_length": 64 * 2 ** 20,
};

/** Whether an address is one of this machine: a Unix socket or a loopback host. */
export function staysOnThisMachine(address: string): boolean {
  if (/^unix(-abstract)?:/.test(address)) return true;
  const host = address.replace(/^(dns|ipv4|ipv6):\/*/, "").replace(/:\d+$/, "").replace(/^\[|\]$/g, "");
  return host === "localhost" || host === "::1" || /^127(\.\d+){3}$/.test(host);
}

type Method<Request, Response> = (
  request: Request, metadata: Metadata, options: { deadline: Date },
  callback: (error: ServiceError | null, response: Response) => void,
) => ClientUnaryCall;

export class Connection {
  readonly #client: AgentServiceClient;
  readonly #metadata: Metadata;
  #stream: ActStream | undefined;

  constructor(address: string, credentials: ChannelCredentials, token: string | undefined) {
    const proxy = { "grpc.enable_http_proxy": staysOnThisMachine(address) ? 0 : 1 };
    this.#client = new AgentServiceClient(address, credentials, { ...OPTIONS, ...proxy });
    this.#metadata = new Metadata({ waitForReady: true });
    if (token !== undefined) this.#metadata.set("authorization", `Bearer ${token}`);
  }

  getAgentInfo(bundleSha256: string, timeoutMs: number): Promise<GetAgentInfoResponse> {
    return this.#call(this.#client.getAgentInfo.bind(this.#client), { bundleSha256 }, timeoutMs);
  }

  startEpisode(request: StartEpisodeRequest, timeoutMs: number): Promise<StartEpisodeResponse> {
    return this.#call(this.#client.startEpisode.bind(this.#client), request, timeoutMs);
  }

  endEpisode(sessionId: string, timeoutMs: number): Promise<EndEpisodeResponse> {
    return this.#call(this.#client.endEpisode.bind(this.#client), { sessionId }, timeoutMs);
  }

  act(request: ActRequest, timeoutMs: number): Promise<ActResponse> {
    return this.#call(this.#client.act.bind(this.#client), request, timeoutMs);
  }

  /** The same over a stream, which is opened where there is none and given up when a reply does not come in time. */
  async streamedAct(request: ActRequest, timeoutMs: number): Promise<ActResponse> {
    this.#stream ??= new ActStream(this.#client.streamAct(this.#metadata));
    try {
      return await this.#stream.exchange(request, timeoutMs);
    } finally {
      if (this.#stream.over) this.#stream = undefined;
    }
  }

  endStream(): void {
    this.#stream?.end();
    this.#stream = undefined;
  }

  close(): void {
    this.endStream();
    this.#client.close();
  }

  #call<Request, Response>(method: unknown, request: Request, timeoutMs: number): Promise<Response> {
    return new Promise((resolve, reject) => {
      const deadline = new Date(Date.now() + Math.max(timeoutMs, 1));
      (method as Method<Request, Response>)(request, this.#metadata, { deadline }, (error, response) => {
        if (error) reject(new CallFailed(error.code, error.details));
        else resolve(response);
      });
    });
  }
}

/** One response for each request, in order; one request at a time. */
class ActStream {
  over = false;
  readonly #call: ClientDuplexStream<StreamActRequest, StreamActResponse>;
  #settle: ((outcome: ActResponse | CallFailed) => void) | undefined;

  constructor(call: ClientDuplexStream<StreamActRequest, StreamActResponse>) {
    this.#call = call;
    call.on("data", ({ result }: StreamActResponse) => {
      if (result?.$case === "act") this.#settle?.(result.value);
      else if (result) this.#settle?.(new CallFailed(result.value.code, result.value.message));
    });
    call.on("error", (error: ServiceError) => this.#end(new CallFailed(error.code, error.details)));
    call.on("end", () => this.#end(new CallFailed(status.UNAVAILABLE, "the stream has ended")));
  }

  exchange(act: ActRequest, timeoutMs: number): Promise<ActResponse> {
    return new Promise((resolve, reject) => {
      const late = setTimeout(() => {
        this.end(); // a reply that comes later must not be taken for the next one's
        this.#settle?.(new CallFailed(status.DEADLINE_EXCEEDED, "no reply in time"));
      }, Math.max(timeoutMs, 1));
      this.#settle = (outcome) => {
        clearTimeout(late);
        this.#settle = undefined;
        if (outcome instanceof CallFailed) reject(outcome);
        else resolve(outcome);
      };
      if (this.over) this.#settle(new CallFailed(status.UNAVAILABLE, "the stream has ended"));
      else this.#call.write({ act, metadata: {} });
    });
  }

  end(): void {
    this.over = true;
    this.#call.cancel();
  }

  #end(failure: CallFailed): void {
    this.over = true;
    this.#settle?.(failure);
  }
}
