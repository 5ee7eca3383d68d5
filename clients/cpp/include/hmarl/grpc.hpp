// An agent over gRPC, with Debian's libgrpc++ (1.51 or newer): messages by wire.hpp, so that nothing has to be generated.
#pragma once

#include <grpcpp/generic/generic_stub.h>
#include <grpcpp/grpcpp.h>

#include <memory>
#include <string>
#include <utility>

#include "hmarl/client.hpp"

namespace hmarl {

struct GrpcOptions {
  std::shared_ptr<grpc::ChannelCredentials> credentials;  // grpc::SslCredentials(...) for TLS; plaintext unless given
  std::string token;    // a bearer token; give credentials, too, unless the agent is on this machine
  bool stream = false;  // acts over one stream, which is quicker than unary calls
};

namespace detail {

inline grpc::ByteBuffer buffer_of(const std::string& bytes) {
  const grpc::Slice slice(bytes);
  return grpc::ByteBuffer(&slice, 1);
}

inline std::string bytes_of(const grpc::ByteBuffer& buffer) {
  std::vector<grpc::Slice> slices;
  if (!buffer.Dump(&slices).ok()) throw CallFailed(Code::internal, "a reply that cannot be read");
  std::string bytes;
  for (const grpc::Slice& slice : slices) bytes.append(reinterpret_cast<const char*>(slice.begin()), slice.size());
  return bytes;
}

// steady_clock's time as gRPC takes it.
inline std::chrono::system_clock::time_point wall(Clock::time_point time) {
  return std::chrono::system_clock::now() + std::chrono::duration_cast<std::chrono::system_clock::duration>(time - Clock::now());
}

// Whether an address is one of this machine: a Unix socket or a loopback host.
inline bool on_this_machine(const std::string& address) {
  for (const char* const start : {"unix:", "unix-abstract:", "127.", "localhost:", "[::1]:"}) {
    if (address.rfind(start, 0) == 0) return true;
  }
  return false;
}

// One StreamAct call: one response for each request, in order.
class ActStream {
 public:
  ActStream(grpc::GenericStub& stub, const std::string& token) {
    if (!token.empty()) context_.AddMetadata("authorization", "Bearer " + token);
    context_.set_wait_for_ready(true);
    call_ = stub.PrepareCall(&context_, "/hmarl.agent.v1.AgentService/StreamAct", &queue_);
    call_->StartCall(tag(start_));
  }
  ~ActStream() {
    context_.TryCancel();
    queue_.Shutdown();
    for (void* done = nullptr; queue_.Next(&done, &ok_);) {}
  }
  ActStream(const ActStream&) = delete;
  ActStream& operator=(const ActStream&) = delete;

  // False once it is of no further use.
  bool usable() const { return usable_; }

  std::string exchange(const std::string& request, Clock::time_point deadline) {
    usable_ = false;  // until a reply has come: a later one must not be taken for the next request's
    if (!started_) started_ = done(start_, deadline);
    wire::StreamActRequest message;
    message.act = wire::decode<wire::ActRequest>(request);
    const grpc::ByteBuffer body = buffer_of(wire::encode(message));
    call_->Write(body, tag(write_));
    call_->Read(&reply_, tag(read_));
    if (!done(write_, deadline) || !done(read_, deadline)) failed(deadline);
    usable_ = true;
    const auto response = wire::decode<wire::StreamActResponse>(bytes_of(reply_));
    if (response.error) throw CallFailed(static_cast<Code>(response.error->code), response.error->message);
    return wire::encode(response.act.value_or(wire::ActResponse{}));
  }

 private:
  static constexpr int start_ = 0, write_ = 1, read_ = 2, finish_ = 3;
  static void* tag(int number) { return reinterpret_cast<void*>(static_cast<std::intptr_t>(number)); }

  // Whether an operation succeeded; throws when the time is over.
  bool done(int operation, Clock::time_point deadline) {
    while (!finished_[operation]) {
      void* which = nullptr;
      if (queue_.AsyncNext(&which, &ok_, wall(deadline)) != grpc::CompletionQueue::GOT_EVENT) {
        throw CallFailed(Code::deadline_exceeded, "no reply in time");
      }
      const auto number = reinterpret_cast<std::intptr_t>(which);
      finished_[number] = true, succeeded_[number] = ok_;
    }
    finished_[operation] = false;
    return succeeded_[operation];
  }

  [[noreturn]] void failed(Clock::time_point deadline) {
    grpc::Status status;
    call_->Finish(&status, tag(finish_));
    done(finish_, deadline);
    throw CallFailed(status.ok() ? Code::unavailable : static_cast<Code>(status.error_code()),
                     status.ok() ? "the stream has ended" : status.error_message());
  }

  grpc::ClientContext context_;
  grpc::CompletionQueue queue_;
  std::unique_ptr<grpc::GenericClientAsyncReaderWriter> call_;
  grpc::ByteBuffer reply_;
  bool started_ = false, usable_ = true, ok_ = false;
  bool finished_[4] = {}, succeeded_[4] = {};
};

}  // namespace detail

class GrpcTransport : public Transport {
 public:
  GrpcTransport(std::string address, GrpcOptions options) : address_(std::move(address)), options_(std::move(options)) { renew(); }
  ~GrpcTransport() override { stream_.reset(); }

  std::string address() const override { return address_; }

  void renew() override {
    stream_.reset();
    grpc::ChannelArguments arguments;
    // gRPC waits up to two minutes between attempts to connect unless told otherwise: too long for a control loop.
    arguments.SetInt("grpc.initial_reconnect_backoff_ms", 50);
    arguments.SetInt("grpc.min_reconnect_backoff_ms", 600);
    arguments.SetInt("grpc.max_reconnect_backoff_ms", 500);
    arguments.SetInt("grpc.keepalive_time_ms", 2000);
    arguments.SetInt("grpc.keepalive_timeout_ms", 2000);
    arguments.SetInt("grpc.http2.max_pings_without_data", 0);
    arguments.SetInt("grpc.enable_retries", 0);             // the client decides what is asked again
    arguments.SetInt("grpc.use_local_subchannel_pool", 1);  // a new channel means a new connection
    if (detail::on_this_machine(address_)) arguments.SetInt("grpc.enable_http_proxy", 0);
    arguments.SetMaxReceiveMessageSize(64 << 20);
    stub_ = std::make_unique<grpc::GenericStub>(grpc::CreateCustomChannel(address_, options_.credentials, arguments));
  }

  std::string call(Method method, const std::string& request, Clock::time_point deadline) override {
    if (method == Method::act && options_.stream) return streamed(request, deadline);
    if (method != Method::act) stream_.reset();  // of the session that ends or begins
    static const char* const names[] = {"GetAgentInfo", "StartEpisode", "Act", "EndEpisode"};
    grpc::ClientContext context;
    context.set_deadline(detail::wall(deadline));
    context.set_wait_for_ready(true);
    if (!options_.token.empty()) context.AddMetadata("authorization", "Bearer " + options_.token);
    grpc::CompletionQueue queue;
    const grpc::ByteBuffer body = detail::buffer_of(request);
    const std::string path = std::string("/hmarl.agent.v1.AgentService/") + names[static_cast<int>(method)];
    const auto reader = stub_->PrepareUnaryCall(&context, path, body, &queue);
    grpc::ByteBuffer reply;
    grpc::Status status;
    reader->StartCall();
    reader->Finish(&reply, &status, nullptr);
    void* tag = nullptr;
    bool ok = false;
    queue.Next(&tag, &ok);
    if (!status.ok()) throw CallFailed(static_cast<Code>(status.error_code()), status.error_message());
    return detail::bytes_of(reply);
  }

 private:
  std::string streamed(const std::string& request, Clock::time_point deadline) {
    if (!stream_ || !stream_->usable()) stream_ = std::make_unique<detail::ActStream>(*stub_, options_.token);
    return stream_->exchange(request, deadline);
  }

  std::string address_;
  GrpcOptions options_;
  std::unique_ptr<grpc::GenericStub> stub_;
  std::unique_ptr<detail::ActStream> stream_;
};

// The transport to the agent at HOST:PORT or unix:PATH.
inline std::unique_ptr<Transport> over_grpc(const std::string& address, GrpcOptions options = {}) {
  if (!options.token.empty() && !detail::on_this_machine(address) && options.credentials == nullptr) {
    throw UsageError(address + ": token: without TLS it would travel readable: give credentials, too");
  }
  if (options.credentials == nullptr) options.credentials = grpc::InsecureChannelCredentials();
  return std::make_unique<GrpcTransport>(address, std::move(options));
}

}  // namespace hmarl
