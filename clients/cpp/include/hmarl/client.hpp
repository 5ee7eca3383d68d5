// One agent, served by another process: deadlines, fallbacks, retries, joining episodes again. How requests travel is up
// to a Transport: frames.hpp (a Unix socket, no gRPC) or grpc.hpp.
#pragma once

#include <cstdint>
#include <cstring>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "hmarl/agent.hpp"
#include "hmarl/wire.hpp"

namespace hmarl {

// gRPC's status codes, whatever the transport.
enum class Code { ok = 0, cancelled = 1, unknown = 2, invalid_argument = 3, deadline_exceeded = 4, not_found = 5,
                  permission_denied = 7, failed_precondition = 9, out_of_range = 11, unimplemented = 12, internal = 13,
                  unavailable = 14, unauthenticated = 16 };

enum class Method { get_agent_info, start_episode, act, end_episode };

// A call that failed.
struct CallFailed : std::runtime_error {
  Code code;
  CallFailed(Code code, const std::string& message)
      : std::runtime_error("status " + std::to_string(static_cast<int>(code)) + ": " + message), code(code), details(message) {}
  std::string details;
};

// Carries encoded requests to one agent; one caller at a time.
class Transport {
 public:
  virtual ~Transport() = default;
  // The encoded reply; throws CallFailed, with deadline_exceeded when the time is over.
  virtual std::string call(Method method, const std::string& request, Clock::time_point deadline) = 0;
  // Leave the connection, over which nothing is answered any longer; the next call makes another.
  virtual void renew() = 0;
  virtual std::string address() const = 0;
};

struct ClientOptions {
  Seconds timeout{1.0};                                     // of an act, all retries included
  FallbackPtr fallback = std::make_shared<Fail>();          // decides when no fresh action arrives in time
  Seconds connect_timeout{10.0};                            // waits so long for an agent that is still starting
  bool diagnostics = false;                                 // ask for the policy's further outputs
  bool rejoin = true;                                       // start the episode again when the agent has forgotten it
};

// Counters since the client was made.
struct Statistics {
  std::uint64_t acts = 0, fresh = 0, fallbacks = 0, late_replies = 0, missed_steps = 0, rejoins = 0, state_resets = 0,
                reconnects = 0;
};

class AgentClient {
 public:
  explicit AgentClient(std::unique_ptr<Transport> transport, ClientOptions options = {})
      : transport_(std::move(transport)), options_(std::move(options)) {
    const auto deadline = Clock::now() + std::chrono::duration_cast<Clock::duration>(options_.connect_timeout);
    try {
      const auto info = until_there<wire::GetAgentInfoResponse>(Method::get_agent_info, wire::GetAgentInfoRequest{}, deadline);
      bundle_ = info.bundle_sha256;
      spec_ = Spec::from(Json::parse(info.agent_manifest_json));
    } catch (const CallFailed& failure) {
      throw AgentError(transport_->address() + ": connecting: " + failure.what());
    }
  }
  ~AgentClient() { end(); }
  AgentClient(const AgentClient&) = delete;
  AgentClient& operator=(const AgentClient&) = delete;

  const Spec& spec() const { return spec_; }
  const Statistics& statistics() const { return statistics_; }
  const std::string& bundle_sha256() const { return bundle_; }

  // Start an episode; the one before it, if any, is ended.
  void reset(const Episode& episode) {
    end();
    request_ = {};
    request_.seed = episode.seed, request_.sample = episode.sample, request_.first_step = episode.first_step;
    request_.diagnostics = options_.diagnostics;
    request_.instruction_choice = choice(episode.instruction_choice);
    const auto deadline = Clock::now() + std::chrono::duration_cast<Clock::duration>(options_.connect_timeout);
    try {
      take(until_there<wire::StartEpisodeResponse>(Method::start_episode, request_, deadline));
    } catch (const CallFailed& failure) {
      throw AgentError(name() + ": starting an episode: " + failure.what());
    }
    next_step_ = episode.first_step;
    has_last_ = lost_ = false;
  }

  // The action for the next step: the policy's if it arrives in time, else the fallback's.
  Action act(const std::vector<float>& observation, const Mask* mask = nullptr) {
    const auto begin = Clock::now();
    if (session_.empty()) throw AgentError(name() + ": no episode: call reset first");
    spec_.check(observation, mask);
    const std::uint64_t step = next_step_++;  // used up before anything is sent: never sent with other content
    ++statistics_.acts;
    const auto deadline = begin + std::chrono::duration_cast<Clock::duration>(options_.timeout);
    std::string reason = "the time allowed is over";
    try {
      wire::ActResponse reply;
      if (attempts(observation, mask, step, deadline, reply, reason)) {
        Action action = accepted(reply, step, mask);
        const auto now = Clock::now();
        if (now <= deadline) {
          action.latency = now - begin;
          last_ = action.value, last_step_ = step, last_time_ = now, has_last_ = true;
          ++statistics_.fresh;
          return action;
        }
        ++statistics_.late_replies;
        reason = "the reply was taken after the time allowed was over";
      }
    } catch (const ObservationError&) {
      next_step_ = step;
      throw;
    }
    ++statistics_.fallbacks;
    Action action;
    action.value = options_.fallback->decide(situation(step, mask, reason));
    action.step = step, action.fresh = false, action.latency = Clock::now() - begin;
    return action;
  }
  Action act(const std::vector<float>& observation, const Mask& mask) { return act(observation, &mask); }

 private:
  static constexpr Seconds pause_{0.01}, start_pause_{0.02}, end_timeout_{0.3}, least_patience_{0.5}, most_patience_{8.0};

  std::string name() const { return "agent '" + spec_.id + "' at " + transport_->address(); }

  static wire::InstructionChoice choice(const std::string& name) {
    static const std::vector<std::string> names = {"", "argmax", "sample", "common"};
    const auto found = std::find(names.begin(), names.end(), name);
    if (found == names.end()) throw UsageError("instruction_choice: got " + name + ", expected argmax, sample or common");
    return static_cast<wire::InstructionChoice>(found - names.begin());
  }

  template <class Reply, class Request> Reply call(Method method, const Request& request, Clock::time_point deadline) {
    try {
      return wire::decode<Reply>(transport_->call(method, wire::encode(request), deadline));
    } catch (const wire::WireError& error) {
      throw AgentError(transport_->address() + ": invalid reply: " + error.what());
    }
  }

  // Ask again while the agent is not there yet.
  template <class Reply, class Request> Reply until_there(Method method, const Request& request, Clock::time_point deadline) {
    for (;;) {
      try {
        return call<Reply>(method, request, deadline);
      } catch (const CallFailed& failure) {
        if (failure.code != Code::unavailable || Clock::now() + start_pause_ >= deadline) throw;
        std::this_thread::sleep_for(start_pause_);
      }
    }
  }

  // Ask until a reply arrives, true, or the time is over, false; then `reason` says what kept it.
  bool attempts(const std::vector<float>& observation, const Mask* mask, std::uint64_t step, Clock::time_point deadline,
                wire::ActResponse& reply, std::string& reason) {
    const wire::ActRequest request = request_of(observation, mask, step);
    if (lost_) reason = lost_reason_;
    for (int tries = 0; Clock::now() < deadline; ++tries) {
      try {
        if (lost_) {
          if (!options_.rejoin || !options_.fallback->may_rejoin(situation(step, mask, lost_reason_))) return false;
          join_again(step, deadline);
        }
        wire::ActRequest sent = request;
        sent.session_id = session_;
        reply = ask<wire::ActResponse>(Method::act, sent, deadline);
        return true;
      } catch (const CallFailed& failure) {
        reason = name() + ": " + failure.what();
        if (is_final(failure, reason, step)) return false;
        if (tries > 0) std::this_thread::sleep_for(std::min<Seconds>(pause_, std::max<Seconds>(deadline - Clock::now(), Seconds{0})));
      }
    }
    return false;
  }

  static wire::ActRequest request_of(const std::vector<float>& observation, const Mask* mask, std::uint64_t step) {
    wire::ActRequest request;
    request.step = step;
    request.observation = wire::Tensor{wire::DataType::float32, {static_cast<std::int64_t>(observation.size())}, {}};
    request.observation->data.resize(4 * observation.size());
    std::memcpy(request.observation->data.data(), observation.data(), 4 * observation.size());  // little-endian machines
    if (mask) {
      request.action_mask = wire::Tensor{wire::DataType::boolean, {static_cast<std::int64_t>(mask->size())}, {}};
      request.action_mask->data.assign(mask->begin(), mask->end());
    }
    return request;
  }

  // Whether the fallback has to decide, whatever time is left; throws where the program is wrong.
  bool is_final(const CallFailed& failure, const std::string& reason, std::uint64_t step) {
    switch (failure.code) {
      case Code::deadline_exceeded: case Code::unavailable: case Code::unknown:
        return false;
      case Code::invalid_argument:
        throw ObservationError(failure.details);
      case Code::failed_precondition: case Code::unimplemented: case Code::unauthenticated: case Code::permission_denied:
        throw AgentError(reason + "; the next act goes on with step " + std::to_string(step + 1));
      case Code::not_found:
        lost_ = true, lost_reason_ = reason;
        return false;
      default:
        return true;
    }
  }

  // One request. A connection over which nothing is answered for a while is left, and another one made.
  template <class Reply, class Request> Reply ask(Method method, const Request& request, Clock::time_point deadline) {
    const auto begin = Clock::now();
    const auto allowed = std::min<Seconds>(deadline - begin, patience_ - silent_);
    try {
      Reply reply = call<Reply>(method, request, begin + std::chrono::duration_cast<Clock::duration>(allowed));
      slowest_ = std::max<Seconds>(Clock::now() - begin, 0.7 * slowest_);
      patience_ = std::max<Seconds>(4 * slowest_, least_patience_);
      silent_ = Seconds{0};
      return reply;
    } catch (const CallFailed& failure) {
      if (failure.code == Code::deadline_exceeded) {
        silent_ += std::min<Seconds>(Clock::now() - begin, allowed);
        if (silent_ + Seconds{0.001} >= patience_) {
          transport_->renew();
          patience_ = std::min<Seconds>(2 * patience_, most_patience_);
          silent_ = Seconds{0};
          ++statistics_.reconnects;
        }
      }
      throw;
    }
  }

  // The episode in a new session, from this step on: the agent has forgotten the old one.
  void join_again(std::uint64_t step, Clock::time_point deadline) {
    request_.first_step = step;
    const auto response = ask<wire::StartEpisodeResponse>(Method::start_episode, request_, deadline);
    take(response);
    lost_ = false;
    ++statistics_.rejoins;
    if (response.state_reset_mid_episode) ++statistics_.state_resets;
  }

  // A session of the agent and bundle that this client is for; of another none is taken.
  void take(const wire::StartEpisodeResponse& response) {
    session_ = response.session_id;
    if (response.agent_id == spec_.id && response.bundle_sha256 == bundle_) return;
    end();
    if (response.agent_id != spec_.id) {
      throw AgentError(transport_->address() + ": got agent '" + response.agent_id + "', expected '" + spec_.id +
                       "': its actions are not taken");
    }
    throw OtherBundleError(name() + ": got bundle " + response.bundle_sha256 + ", expected " + bundle_ + ": make a new client");
  }

  Action accepted(const wire::ActResponse& reply, std::uint64_t step, const Mask* mask) {
    if (reply.step != step) {
      throw AgentError(name() + ": got a reply to step " + std::to_string(reply.step) + ", expected " + std::to_string(step));
    }
    Action action;
    action.step = reply.step, action.missed_steps = reply.missed_steps, action.replayed = reply.replayed;
    statistics_.missed_steps += reply.missed_steps;
    const wire::Tensor tensor = reply.action.value_or(wire::Tensor{});
    const bool box = spec_.space == Space::box;
    const std::size_t size = box ? spec_.low.size() : spec_.branches.size();
    const std::size_t rank = spec_.space == Space::discrete ? 0 : 1;
    if (tensor.data_type != (box ? wire::DataType::float32 : wire::DataType::int64) || tensor.shape.size() != rank ||
        tensor.data.size() != size * (box ? 4 : 8)) {
      throw AgentError(name() + ": step " + std::to_string(reply.step) + ": invalid reply: an action of another form");
    }
    if (box) {
      action.value.numbers.resize(size);
      std::memcpy(action.value.numbers.data(), tensor.data.data(), tensor.data.size());
    } else {
      action.value.choices.resize(size);
      std::memcpy(action.value.choices.data(), tensor.data.data(), tensor.data.size());
    }
    const std::string problem = spec_.problem(action.value, mask);
    if (!problem.empty()) throw AgentError(name() + ": step " + std::to_string(step) + ": invalid reply: " + problem);
    for (const auto& [output, diagnostic] : reply.diagnostics) action.diagnostics[output] = numbers_of(diagnostic);
    return action;
  }

  static std::vector<double> numbers_of(const wire::Tensor& tensor) {
    std::vector<double> numbers;
    const auto add = [&](auto number) {
      for (std::size_t at = 0; at + sizeof number <= tensor.data.size(); at += sizeof number) {
        std::memcpy(&number, tensor.data.data() + at, sizeof number);
        numbers.push_back(static_cast<double>(number));
      }
    };
    if (tensor.data_type == wire::DataType::float32) add(float{});
    else if (tensor.data_type == wire::DataType::int64) add(std::int64_t{});
    else add(std::uint8_t{});
    return numbers;
  }

  Situation situation(std::uint64_t step, const Mask* mask, const std::string& reason) const {
    const Seconds age = has_last_ ? Seconds(Clock::now() - last_time_) : Hold::forever;
    return {step, spec_, mask, has_last_ ? &last_ : nullptr, age, has_last_ ? step - last_step_ : Hold::always, reason};
  }

  // Tell the agent that the episode is over; if it does not hear it, it forgets the session by itself.
  void end() {
    if (session_.empty()) return;
    const wire::EndEpisodeRequest request{session_};
    session_.clear();
    try {
      const auto deadline = Clock::now() + std::chrono::duration_cast<Clock::duration>(end_timeout_);
      call<wire::EndEpisodeResponse>(Method::end_episode, request, deadline);
    } catch (const std::exception&) {  // the agent may be gone, or may have forgotten already
    }
  }

  std::unique_ptr<Transport> transport_;
  ClientOptions options_;
  Spec spec_;
  Statistics statistics_;
  std::string bundle_, session_, lost_reason_;
  wire::StartEpisodeRequest request_;
  std::uint64_t next_step_ = 0, last_step_ = 0;
  Value last_;
  Clock::time_point last_time_{};
  bool has_last_ = false, lost_ = false;
  Seconds silent_{0}, patience_ = least_patience_, slowest_{0};
};

}  // namespace hmarl
