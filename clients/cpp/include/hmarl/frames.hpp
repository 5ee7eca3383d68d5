// An agent over a Unix socket, without gRPC: `hmarl-agent --frames PATH`. docs/frames.md specifies it.
#pragma once

#include <poll.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <string>
#include <utility>

#include "hmarl/client.hpp"

namespace hmarl {

namespace detail {

// Where the message of a method lies, in a request or a response.
template <class Frame> auto& body_of(Frame& frame, Method method) {
  switch (method) {
    case Method::act: return frame.act;
    case Method::start_episode: return frame.start_episode;
    case Method::end_episode: return frame.end_episode;
    default: return frame.get_agent_info;
  }
}

}  // namespace detail

class FramesTransport : public Transport {
 public:
  explicit FramesTransport(std::string path) : path_(std::move(path)) {}
  ~FramesTransport() override { renew(); }
  FramesTransport(const FramesTransport&) = delete;
  FramesTransport& operator=(const FramesTransport&) = delete;

  std::string address() const override { return "frames:" + path_; }

  void renew() override {
    if (socket_ >= 0) close(socket_);
    socket_ = -1;
    received_.clear();
  }

  std::string call(Method method, const std::string& request, Clock::time_point deadline) override {
    if (socket_ < 0) connect_now();
    wire::FrameRequest frame;
    frame.id = ++id_;
    frame.deadline_ns = static_cast<std::uint64_t>(std::chrono::nanoseconds(deadline.time_since_epoch()).count());
    detail::body_of(frame, method) = wire::Bytes(request);
    const std::string message = wire::encode(frame);
    std::string sent;
    wire::put_varint(sent, message.size());
    send_all(sent + message, deadline);
    for (;;) {
      const wire::FrameResponse response = next(deadline);
      if (response.id == 0 && response.error) {
        renew();
        throw CallFailed(static_cast<Code>(response.error->code), response.error->message);
      }
      if (response.id != id_) continue;  // the late answer to a request that was given up
      if (response.error) throw CallFailed(static_cast<Code>(response.error->code), response.error->message);
      const auto& answer = detail::body_of(response, method);
      if (!answer) throw CallFailed(Code::internal, "a response of another kind");
      return *answer;
    }
  }

 private:
  static constexpr std::size_t limit_bytes_ = std::size_t{64} << 20;

  [[noreturn]] void broken(const std::string& doing) {
    const std::string why = std::strerror(errno);
    renew();
    throw CallFailed(Code::unavailable, doing + ": " + why);
  }

  void connect_now() {
    sockaddr_un to{};
    to.sun_family = AF_UNIX;
    if (path_.size() >= sizeof to.sun_path) throw UsageError("frames: got a path of " + std::to_string(path_.size()) + " bytes, expected at most 107");
    std::memcpy(to.sun_path, path_.data(), path_.size());
    socket_ = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (socket_ < 0 || connect(socket_, reinterpret_cast<const sockaddr*>(&to), sizeof to) != 0) broken("connecting to " + path_);
  }

  // Waits until something can be done; throws when the time is over.
  void wait_for(short what, Clock::time_point deadline) {
    for (;;) {
      const auto left = std::chrono::nanoseconds(deadline - Clock::now()).count();
      if (left <= 0) throw CallFailed(Code::deadline_exceeded, "no answer in time");
      pollfd watched{socket_, what, 0};
      const timespec limit{left / 1'000'000'000, left % 1'000'000'000};
      if (ppoll(&watched, 1, &limit, nullptr) > 0) return;
    }
  }

  // A frame that is sent in part only cannot be taken back: the connection is left then.
  void send_all(const std::string& bytes, Clock::time_point deadline) {
    for (std::size_t done = 0; done < bytes.size();) {
      const ssize_t sent = send(socket_, bytes.data() + done, bytes.size() - done, MSG_NOSIGNAL);
      if (sent >= 0) {
        done += static_cast<std::size_t>(sent);
      } else if (errno == EAGAIN || errno == EINTR) {
        try {
          wait_for(POLLOUT, deadline);
        } catch (const CallFailed&) {
          if (done > 0) renew();
          throw;
        }
      } else {
        broken("sending");
      }
    }
  }

  wire::FrameResponse next(Clock::time_point deadline) {
    for (;;) {
      std::string message;
      if (taken(message)) {
        try {
          return wire::decode<wire::FrameResponse>(message);
        } catch (const wire::WireError& error) {
          renew();
          throw CallFailed(Code::unavailable, error.what());
        }
      }
      char buffer[65536];
      const ssize_t got = recv(socket_, buffer, sizeof buffer, 0);
      if (got > 0) {
        received_.append(buffer, static_cast<std::size_t>(got));
      } else if (got < 0 && (errno == EAGAIN || errno == EINTR)) {
        wait_for(POLLIN, deadline);
      } else {
        if (got == 0) errno = ECONNRESET;
        broken("receiving");
      }
    }
  }

  // Takes the first frame of what has been received, if it is whole.
  bool taken(std::string& message) {
    std::size_t size = 0;
    for (std::size_t at = 0; at < received_.size(); ++at) {
      if (at == 5) break;
      const auto byte = static_cast<unsigned char>(received_[at]);
      size |= static_cast<std::size_t>(byte & 127) << (7 * at);
      if (byte >= 128) continue;
      if (size > limit_bytes_) break;
      if (received_.size() < at + 1 + size) return false;
      message = received_.substr(at + 1, size);
      received_.erase(0, at + 1 + size);
      return true;
    }
    if (received_.size() < 5) return false;
    renew();
    throw CallFailed(Code::unavailable, "got a frame of more than 64 MiB");
  }

  std::string path_, received_;
  int socket_ = -1;
  std::uint64_t id_ = 0;
};

// The transport to `hmarl-agent --frames PATH`.
inline std::unique_ptr<Transport> frames(const std::string& path) { return std::make_unique<FramesTransport>(path); }

}  // namespace hmarl
