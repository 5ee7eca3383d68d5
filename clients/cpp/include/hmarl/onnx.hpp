// An agent's policy in this process, by ONNX Runtime's C API: onnxruntime_c_api.h and libonnxruntime, of 1.18 or newer.
#pragma once

#include <onnxruntime_c_api.h>

#include <cstring>
#include <fstream>
#include <iterator>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "hmarl/agent.hpp"
#include "hmarl/noise.hpp"

namespace hmarl {

// A bundle in a folder. Nothing is used whose hash has not been compared.
class Bundle {
 public:
  // `sha256`: the only bundle that is taken, e.g. one that was released; any unless given.
  explicit Bundle(std::string folder, const std::string& sha256 = "") : folder_(std::move(folder)) {
    const std::string content = read("manifest.json");
    sha256_ = hmarl::sha256(content);
    for (const std::string& expected : {read("manifest.sha256").substr(0, 64), sha256.empty() ? sha256_ : sha256}) {
      if (sha256_ != expected) throw BundleError("manifest.json: got SHA-256 " + sha256_ + ", expected " + expected);
    }
    manifest_ = Json::parse(content);
    if (manifest_.at("schema_version") != 1) throw BundleError("schema_version: this client reads 1");
  }

  const std::string& sha256() const { return sha256_; }

  // A file's content, once its hash is the manifest's.
  std::string file(const std::string& name) const {
    if (!manifest_.at("files").contains(name)) throw BundleError(name + ": the manifest lists no such file");
    std::string content = read(name);
    const std::string expected = manifest_.at("files").at(name), got = hmarl::sha256(content);
    if (got != expected) throw BundleError(name + ": got SHA-256 " + got + ", expected " + expected);
    return content;
  }

  // The manifest's entry of an agent.
  const Json& agent(const std::string& id) const {
    for (const Json& agent : manifest_.at("agents")) {
      if (agent.at("id") == id) return agent;
    }
    throw UsageError("agent: got '" + id + "', which the bundle does not have");
  }

 private:
  std::string read(const std::string& name) const {
    std::ifstream file(folder_ + "/" + name, std::ios::binary);
    if (!file) throw BundleError(folder_ + "/" + name + ": cannot be read");
    return {std::istreambuf_iterator<char>(file), {}};
  }

  std::string folder_, sha256_;
  Json manifest_;
};

class LocalAgent {
 public:
  LocalAgent(const Bundle& bundle, const std::string& agent_id)
      : ort_(OrtGetApiBase()->GetApi(ORT_API_VERSION)), model_(bundle.agent(agent_id)), spec_(Spec::from(model_)) {
    if (ort_ == nullptr) throw UsageError("ONNX Runtime: the library is older than the header it was compiled with");
    const std::string graph = bundle.file(model_.at("file"));
    check(ort_->CreateEnv(ORT_LOGGING_LEVEL_ERROR, "hmarl", &env_));
    check(ort_->DisableTelemetryEvents(env_));
    OrtSessionOptions* options = nullptr;
    check(ort_->CreateSessionOptions(&options));
    check(ort_->SetIntraOpNumThreads(options, 1));
    OrtStatus* made = ort_->CreateSessionFromArray(env_, graph.data(), graph.size(), options, &session_);
    ort_->ReleaseSessionOptions(options);
    check(made);
    check(ort_->CreateCpuMemoryInfo(OrtArenaAllocator, OrtMemTypeDefault, &memory_));
  }
  ~LocalAgent() {
    ort_->ReleaseMemoryInfo(memory_);
    ort_->ReleaseSession(session_);
    ort_->ReleaseEnv(env_);
  }
  LocalAgent(const LocalAgent&) = delete;
  LocalAgent& operator=(const LocalAgent&) = delete;

  const Spec& spec() const { return spec_; }
  // The recurrent state that the next act starts from.
  const std::map<std::string, std::vector<float>>& states() const { return states_; }

  void reset(const Episode& episode) {
    noises_.clear();
    sources_.clear();
    const std::string said = model_.value("instruction_choice", Json()).is_string() ? model_["instruction_choice"] : Json("");
    std::string choice = !episode.instruction_choice.empty() ? episode.instruction_choice : said;
    if (choice.empty()) choice = episode.sample ? "common" : "argmax";
    if (choice != "argmax" && choice != "sample" && choice != "common") {
      throw UsageError("instruction_choice: got " + choice + ", expected argmax, sample or common");
    }
    for (const Json& noise : model_.value("noises", Json::array())) {
      const std::size_t size = product(noise.at("shape"));
      noises_[noise.at("name")].assign(size, 0.0F);
      const bool of_action = noise.at("purpose") == "action";
      if (of_action ? !episode.sample : choice == "argmax") continue;
      const bool common = of_action ? noise.at("stream") == "common" : choice == "common";
      sources_.emplace_back(noise.at("name"), size, noise.at("distribution") == "normal", common, spec_.id);
    }
    states_.clear();
    for (const Json& state : model_.value("states", Json::array())) {
      if (state.at("dtype") != "float32") throw BundleError("states: this client takes float32 only");
      states_[state.at("input")] = state.at("reset").get<std::vector<float>>();
    }
    seed_ = episode.seed, next_step_ = episode.first_step, started_ = true, has_last_ = false;
  }

  Action act(const std::vector<float>& observation, const Mask* mask = nullptr) { return act(observation, mask, next_step_); }

  // The same for a step that is named: a gap is legal; the last step again is answered by what was recorded.
  Action act(const std::vector<float>& observation, const Mask* mask, std::uint64_t step) {
    const auto begin = Clock::now();
    if (!started_) throw UsageError("agent '" + spec_.id + "': no episode: call reset first");
    spec_.check(observation, mask);
    const Mask given = mask ? *mask : Mask{};
    if (step < next_step_) {
      if (!has_last_ || step != last_.step) throw StepOrderError("step: got " + std::to_string(step) + ", expected " + std::to_string(next_step_) + " or later");
      if (observation != last_observation_ || given != last_mask_) throw StepOrderError("step: got " + std::to_string(step) + " again with other content");
      Action again = last_;
      again.replayed = true, again.latency = Clock::now() - begin;
      return again;
    }
    Action action = run(observation, given, step);
    action.step = step, action.missed_steps = step - next_step_;
    next_step_ = step + 1, last_ = action, last_observation_ = observation, last_mask_ = given, has_last_ = true;
    action.latency = Clock::now() - begin;
    return action;
  }

 private:
  void check(OrtStatus* status) const {
    if (status == nullptr) return;
    const std::string message = ort_->GetErrorMessage(status);
    ort_->ReleaseStatus(status);
    throw BundleError("ONNX Runtime: " + message);
  }

  static std::size_t product(const Json& shape) {
    std::size_t size = 1;
    for (const Json& each : shape) size *= each.get<std::size_t>();
    return size;
  }

  // Tensors over memory that is ours, and those that a run returns.
  struct Values {
    const OrtApi* ort;
    std::vector<std::string> names;
    std::vector<OrtValue*> values;
    explicit Values(const OrtApi* api) : ort(api) {}
    ~Values() { for (OrtValue* value : values) ort->ReleaseValue(value); }
    Values(const Values&) = delete;
    Values& operator=(const Values&) = delete;
    std::vector<const char*> pointers() const {
      std::vector<const char*> pointers;
      for (const std::string& name : names) pointers.push_back(name.c_str());
      return pointers;
    }
  };

  void add(Values& to, const std::string& name, const Json& shape, void* data, std::size_t bytes, ONNXTensorElementDataType type) const {
    std::vector<std::int64_t> size = {1};
    for (const Json& each : shape) size.push_back(each);
    OrtValue* value = nullptr;
    check(ort_->CreateTensorWithDataAsOrtValue(memory_, data, bytes, size.data(), size.size(), type, &value));
    to.names.push_back(name);
    to.values.push_back(value);
  }

  Action run(std::vector<float> observation, Mask mask, std::uint64_t step) {
    Values inputs(ort_), outputs(ort_);
    const auto floats = [&](const Json& tensor, const std::string& name, std::vector<float>& numbers) {
      add(inputs, name, tensor.at("shape"), numbers.data(), 4 * numbers.size(), ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT);
    };
    const Json& seen = model_.at("observation");
    floats(seen, seen.at("name"), observation);
    if (spec_.has_mask) {
      const Json& masked = model_.at("action_mask");
      add(inputs, masked.at("name"), masked.at("shape"), mask.data(), mask.size(), ONNX_TENSOR_ELEMENT_DATA_TYPE_BOOL);
    }
    std::int64_t counted = static_cast<std::int64_t>(std::min<std::uint64_t>(step, INT64_MAX));
    if (model_.contains("step") && !model_.at("step").is_null()) {
      add(inputs, model_.at("step").at("name"), Json::array(), &counted, 8, ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64);
    }
    for (const NoiseSource& source : sources_) noises_[source.name()] = source.draw(seed_, step);
    for (const Json& noise : model_.value("noises", Json::array())) floats(noise, noise.at("name"), noises_[noise.at("name")]);
    const Json states = model_.value("states", Json::array());
    for (const Json& state : states) floats(state, state.at("input"), states_[state.at("input")]);
    outputs.names.push_back(model_.at("action").at("name"));
    for (const Json& state : states) outputs.names.push_back(state.at("output"));
    for (const Json& each : model_.value("diagnostics", Json::array())) outputs.names.push_back(each.at("name"));
    outputs.values.assign(outputs.names.size(), nullptr);
    check(ort_->Run(session_, nullptr, inputs.pointers().data(), inputs.values.data(), inputs.values.size(),
                    outputs.pointers().data(), outputs.values.size(), outputs.values.data()));
    return answered(outputs, states, step, mask);
  }

  // The action and what goes with it; only when all is in order does the state advance.
  Action answered(const Values& outputs, const Json& states, std::uint64_t step, const Mask& mask) {
    std::map<std::string, std::vector<double>> rows;
    for (std::size_t i = 0; i < outputs.names.size(); ++i) {
      rows[outputs.names[i]] = numbers_of(outputs.values[i]);
      for (const double number : rows[outputs.names[i]]) {
        if (!std::isfinite(number)) {
          throw NonFiniteError("agent '" + spec_.id + "': step " + std::to_string(step) + ": " + outputs.names[i] + " is not finite");
        }
      }
    }
    Action action;
    for (const double number : rows[outputs.names[0]]) {
      if (spec_.space == Space::box) action.value.numbers.push_back(static_cast<float>(number));
      else action.value.choices.push_back(static_cast<std::int64_t>(number));
    }
    const std::string problem = spec_.problem(action.value, spec_.has_mask ? &mask : nullptr);
    if (!problem.empty()) {
      throw InferenceError("agent '" + spec_.id + "': step " + std::to_string(step) + ": the policy computed no action that it has: " + problem);
    }
    rows.erase(outputs.names[0]);
    for (const Json& state : states) {
      const auto& row = rows[state.at("output")];
      states_[state.at("input")].assign(row.begin(), row.end());
      rows.erase(state.at("output").get<std::string>());
    }
    action.diagnostics = std::move(rows);
    return action;
  }

  std::vector<double> numbers_of(OrtValue* value) const {
    OrtTensorTypeAndShapeInfo* info = nullptr;
    check(ort_->GetTensorTypeAndShape(value, &info));
    std::size_t size = 0;
    ONNXTensorElementDataType type{};
    OrtStatus* counted = ort_->GetTensorShapeElementCount(info, &size);
    if (counted == nullptr) counted = ort_->GetTensorElementType(info, &type);
    ort_->ReleaseTensorTypeAndShapeInfo(info);
    check(counted);
    void* data = nullptr;
    check(ort_->GetTensorMutableData(value, &data));
    if (type == ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT) return {static_cast<float*>(data), static_cast<float*>(data) + size};
    if (type == ONNX_TENSOR_ELEMENT_DATA_TYPE_BOOL) return {static_cast<std::uint8_t*>(data), static_cast<std::uint8_t*>(data) + size};
    std::vector<double> numbers;
    for (std::size_t i = 0; i < size; ++i) numbers.push_back(static_cast<double>(static_cast<std::int64_t*>(data)[i]));
    return numbers;
  }

  const OrtApi* ort_;
  Json model_;
  Spec spec_;
  OrtEnv* env_ = nullptr;
  OrtSession* session_ = nullptr;
  OrtMemoryInfo* memory_ = nullptr;
  std::map<std::string, std::vector<float>> states_, noises_;
  std::vector<NoiseSource> sources_;
  std::uint64_t seed_ = 0, next_step_ = 0;
  Action last_;
  std::vector<float> last_observation_;
  Mask last_mask_;
  bool started_ = false, has_last_ = false;
};

}  // namespace hmarl
