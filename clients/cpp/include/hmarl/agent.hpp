// One agent's policy as a program uses it: what AgentClient and LocalAgent share. Fallbacks, errors, checks of inputs.
#pragma once

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <limits>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <numeric>
#include <optional>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

namespace hmarl {

using Json = nlohmann::json;
using Clock = std::chrono::steady_clock;
using Seconds = std::chrono::duration<double>;

// The base of all errors; each says what was got and what was expected.
struct Error : std::runtime_error { using std::runtime_error::runtime_error; };
struct UsageError : Error { using Error::Error; };        // a wrong argument; nothing has been changed
struct BundleError : Error { using Error::Error; };       // a bundle that is damaged or incomplete
struct ObservationError : Error { using Error::Error; };  // wrong length or content; the step is not used up
struct InferenceError : Error { using Error::Error; };    // the policy computed no action, or an illegal one; nothing has changed
struct NonFiniteError : InferenceError { using InferenceError::InferenceError; };  // it computed NaN or infinity
struct StepOrderError : Error { using Error::Error; };    // an older step, or the last one with other content
struct StaleActionError : Error { using Error::Error; };  // no fresh action, and none may stand in: stop the robot
struct AgentError : Error { using Error::Error; };        // the agent refuses, is not there, or another one answers
struct OtherBundleError : AgentError { using AgentError::AgentError; };

enum class Space { discrete, multi_discrete, box };
using Mask = std::vector<std::uint8_t>;  // 1 where legal

// Discrete: one choice. Several branches: one each. Continuous: numbers in the environment's own units.
struct Value {
  std::vector<std::int64_t> choices;
  std::vector<float> numbers;

  std::int64_t choice() const { return choices.at(0); }
  bool operator==(const Value& other) const { return choices == other.choices && numbers == other.numbers; }
};

struct Action {
  Value value;
  std::uint64_t step = 0;
  bool fresh = true;               // false: the fallback chose it
  std::uint64_t missed_steps = 0;  // observations before this one that the policy never received
  bool replayed = false;           // the recorded reply of a repeated request
  std::map<std::string, std::vector<double>> diagnostics;
  Seconds latency{0};
};

struct Episode {
  explicit Episode(std::uint64_t seed = 0, bool sample = false, std::string instruction_choice = "", std::uint64_t first_step = 0)
      : seed(seed), sample(sample), instruction_choice(std::move(instruction_choice)), first_step(first_step) {}

  std::uint64_t seed;              // the same for all agents of a team
  bool sample;                     // false: argmax or mean
  std::string instruction_choice;  // argmax, sample, common; empty: as the bundle says
  std::uint64_t first_step;        // above 0 when an episode is joined in the middle
};

struct Spec {
  std::string id;
  std::size_t observation_size = 0;
  Space space = Space::discrete;
  std::vector<std::size_t> branches;  // choices in each; none for continuous actions
  std::vector<float> low, high;       // of continuous actions
  bool has_mask = false;

  std::size_t mask_size() const { return std::accumulate(branches.begin(), branches.end(), std::size_t{0}); }
  bool operator==(const Spec& o) const {
    return id == o.id && observation_size == o.observation_size && space == o.space && branches == o.branches &&
           low == o.low && high == o.high && has_mask == o.has_mask;
  }

  // From the manifest's entry of an agent.
  static Spec from(const Json& model) {
    Spec spec;
    const Json& space = model.at("action_space");
    const std::string type = space.at("type");
    spec.id = model.at("id");
    const Json& seen = model.at("observation");
    if (seen.at("shape").size() != 1 || seen.at("dtype") != "float32") {
      throw UsageError("agent '" + spec.id + "': it observes " + seen.at("dtype").get<std::string>() + " " +
                       seen.at("shape").dump() + "; this client takes vectors of float32 only: use the one in Python");
    }
    spec.observation_size = seen.at("shape").at(0);
    spec.has_mask = model.contains("action_mask") && !model.at("action_mask").is_null();
    if (type == "box") {
      spec.space = Space::box, spec.low = space.at("low").get<std::vector<float>>();
      spec.high = space.at("high").get<std::vector<float>>();
    } else if (type == "multi_discrete") {
      spec.space = Space::multi_discrete, spec.branches = space.at("n").get<std::vector<std::size_t>>();
    } else {
      spec.branches = {space.at("n").get<std::size_t>()};
    }
    return spec;
  }

  // Throws ObservationError unless both are in order; no mask exactly where the policy has none.
  void check(const std::vector<float>& observation, const Mask* mask) const {
    const auto got = [](std::size_t size) { return std::to_string(size); };
    if (observation.size() != observation_size) {
      throw ObservationError("observation: got " + got(observation.size()) + " numbers, expected " + got(observation_size));
    }
    for (std::size_t i = 0; i < observation.size(); ++i) {
      if (!std::isfinite(observation[i])) {
        throw ObservationError("observation[" + got(i) + "]: got " + std::to_string(observation[i]) + ", expected finite numbers");
      }
    }
    if (!has_mask) {
      if (mask) throw ObservationError("mask: got one, but this policy has no mask input: leave it out");
      return;
    }
    if (!mask || mask->size() != mask_size()) {
      throw ObservationError("mask: got " + (mask ? got(mask->size()) : "nothing") + ", expected " + got(mask_size()) + " flags");
    }
    auto start = mask->begin();
    for (const std::size_t size : branches) {
      if (std::find(start, start + static_cast<std::ptrdiff_t>(size), 1) == start + static_cast<std::ptrdiff_t>(size)) {
        throw ObservationError("mask: got no legal action in a branch, expected at least one");
      }
      start += static_cast<std::ptrdiff_t>(size);
    }
  }

  // Why this is no action of the agent, or an illegal one; empty if it is one. Numbers may lie past their bounds.
  std::string problem(const Value& value, const Mask* mask) const {
    if (value.choices.size() != branches.size() || value.numbers.size() != low.size()) return "action: got another form";
    std::size_t start = 0;
    for (std::size_t branch = 0; branch < branches.size(); start += branches[branch++]) {
      const std::int64_t choice = value.choices[branch];
      const bool known = choice >= 0 && static_cast<std::uint64_t>(choice) < branches[branch];
      if (known && (!mask || mask->at(start + static_cast<std::size_t>(choice)))) continue;
      return "action[" + std::to_string(branch) + "]: got " + std::to_string(choice) + ", expected a choice " +
             (known ? "that the mask allows" : "from 0 to " + std::to_string(branches[branch] - 1));
    }
    for (std::size_t i = 0; i < value.numbers.size(); ++i) {
      if (std::isfinite(value.numbers[i])) continue;
      return "action[" + std::to_string(i) + "]: got " + std::to_string(value.numbers[i]) + ", expected finite numbers";
    }
    return "";
  }

  // The action, with every choice that the mask excludes replaced by the first legal one of its branch.
  Value nearest_legal(Value value, const Mask* mask) const {
    std::size_t start = 0;
    for (std::size_t branch = 0; mask && branch < branches.size(); start += branches[branch++]) {
      auto& choice = value.choices.at(branch);
      if (mask->at(start + static_cast<std::size_t>(choice))) continue;
      for (choice = 0; !mask->at(start + static_cast<std::size_t>(choice));) ++choice;
    }
    return value;
  }
};

// What a fallback may look at.
struct Situation {
  std::uint64_t step;
  const Spec& spec;
  const Mask* mask;         // null: all are legal
  const Value* last;        // the last fresh action of this episode; null: there was none
  Seconds age;              // since it arrived
  std::uint64_t age_steps;
  std::string reason;
};

// Decides when no fresh action arrives in time.
class Fallback {
 public:
  virtual ~Fallback() = default;
  // The action instead, legal under the mask; throws StaleActionError where none may stand in.
  virtual Value decide(const Situation& situation) const = 0;
  // Whether the client may join the episode again by itself.
  virtual bool may_rejoin(const Situation&) const { return true; }
};
using FallbackPtr = std::shared_ptr<const Fallback>;

// Throws at once: the default.
class Fail : public Fallback {
 public:
  Value decide(const Situation& s) const override {
    const std::string age = s.last ? std::to_string(s.age.count()) + " s old" : "missing";
    throw StaleActionError("step " + std::to_string(s.step) + ": " + s.reason + "; the last fresh action is " + age);
  }
};

// The zero action, or the point of a continuous space nearest to it; where 0 is illegal the first legal one.
class Zero : public Fallback {
 public:
  Value decide(const Situation& s) const override {
    Value zero;
    zero.choices.assign(s.spec.branches.size(), 0);
    for (std::size_t i = 0; i < s.spec.low.size(); ++i) {
      zero.numbers.push_back(std::min(std::max(0.0F, s.spec.low[i]), s.spec.high[i]));
    }
    return s.spec.nearest_legal(std::move(zero), s.mask);
  }
};

// A fixed action, e.g. the environment's own no-op; where it is illegal the first legal one.
class Fixed : public Fallback {
 public:
  explicit Fixed(Value value) : value_(std::move(value)) {}
  Value decide(const Situation& s) const override { return s.spec.nearest_legal(value_, s.mask); }

 private:
  Value value_;
};

// Repeats the last fresh action until it expires, or until the mask excludes it; then `then` decides.
class Hold : public Fallback {
 public:
  static constexpr Seconds forever{std::numeric_limits<double>::infinity()};
  static constexpr auto always = std::numeric_limits<std::uint64_t>::max();

  explicit Hold(Seconds expires_after, std::uint64_t expires_after_steps = always, FallbackPtr then = nullptr)
      : expires_after_(expires_after), steps_(expires_after_steps), then_(std::move(then)) {
    if (!(expires_after.count() > 0) || steps_ == 0 || (std::isinf(expires_after.count()) && steps_ == always)) {
      throw UsageError("Hold: expected a limit in seconds or steps, above 0; a held action must expire");
    }
  }
  Value decide(const Situation& s) const override {
    if (!expired(s) && s.spec.problem(*s.last, s.mask).empty()) return *s.last;
    return then_ ? then_->decide(s) : Fail().decide(s);
  }
  // Once a held action has expired into an error, only an explicit reset goes on.
  bool may_rejoin(const Situation& s) const override { return !s.last || !expired(s) || (then_ && then_->may_rejoin(s)); }

 private:
  bool expired(const Situation& s) const { return !s.last || s.age > expires_after_ || s.age_steps > steps_; }
  Seconds expires_after_;
  std::uint64_t steps_;
  FallbackPtr then_;
};

}  // namespace hmarl
