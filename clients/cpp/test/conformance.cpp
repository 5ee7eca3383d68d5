// The C++ client, held to the vectors that clients in all languages are held to, and to a real agent that is frozen, killed
// and replaced. Built with HMARL_WITH_GRPC and HMARL_WITH_ONNX where their headers are there.
#include <cstdio>
#include <fstream>
#include <functional>
#include <iostream>

#include "agent_process.hpp"
#include "hmarl/client.hpp"
#include "hmarl/frames.hpp"
#include "hmarl/noise.hpp"
#ifdef HMARL_WITH_GRPC
#include "hmarl/grpc.hpp"
#endif
#ifdef HMARL_WITH_ONNX
#include "hmarl/onnx.hpp"
#endif

using hmarl::Json;
namespace wire = hmarl::wire;

#define CHECK(condition) \
  do { \
    if (!(condition)) throw std::runtime_error(std::string(__FILE__) + ":" + std::to_string(__LINE__) + ": " #condition); \
  } while (false)

template <class Thrown> void check_throws(const std::function<void()>& call, const std::string& said) {
  try {
    call();
  } catch (const Thrown& error) {
    if (std::string(error.what()).find(said) != std::string::npos) return;
    throw std::runtime_error("got '" + std::string(error.what()) + "', expected '" + said + "'");
  }
  throw std::runtime_error("nothing was thrown, expected '" + said + "'");
}

static std::string vectors_folder = "../../proto/conformance";
static Json vectors(const std::string& name) {
  std::ifstream file(vectors_folder + "/" + name + ".json");
  CHECK(file);
  return Json::parse(file);
}
static std::uint64_t word(const Json& text) { return std::stoull(text.get<std::string>(), nullptr, 16); }
static std::string from_hex(const std::string& hex) {
  std::string bytes;
  for (std::size_t at = 0; at < hex.size(); at += 2) bytes.push_back(static_cast<char>(std::stoi(hex.substr(at, 2), nullptr, 16)));
  return bytes;
}
static std::string base64(const std::string& bytes) {
  static const char digits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
  std::string text;
  for (std::size_t at = 0; at < bytes.size(); at += 3) {
    unsigned group = 0;
    for (std::size_t i = 0; i < 3; ++i) group = group << 8 | (at + i < bytes.size() ? static_cast<unsigned char>(bytes[at + i]) : 0U);
    for (std::size_t i = 0; i < 4; ++i) text.push_back(at + i > bytes.size() ? '=' : digits[(group >> (18 - 6 * i)) & 63]);
  }
  return text;
}
static bool near(double got, double expected) { return std::abs(got - expected) <= 1e-5 * std::max(1.0, std::abs(expected)); }

static void hashes() {
  const Json hashes = vectors("hashes");
  for (const Json& each : hashes["blake2b_64"]) CHECK(hmarl::hash64(each["text"].get<std::string>()) == word(each["hash"]));
  for (const auto& [name, hash] : hashes["files"].items()) {
    std::ifstream file(vectors_folder + "/bundle/" + name, std::ios::binary);
    CHECK(hmarl::sha256(std::string{std::istreambuf_iterator<char>(file), {}}) == hash);
  }
  CHECK(hmarl::sha256("") == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
  CHECK(hmarl::hash64(std::string(128, 'x')) != hmarl::hash64(std::string(129, 'x')));
}

static void noise() {
  for (const Json& each : vectors("noise")) {
    const bool normal = each["distribution"] == "normal";
    const hmarl::NoiseSource source(each["name"], each["values"].size(), normal, each["stream"] == "common", each["agent"]);
    const hmarl::Key key = source.key(word(each["seed"]));
    const hmarl::Counter counter = source.counter(word(each["step"]));
    for (std::size_t i = 0; i < 2; ++i) CHECK(key[i] == word(each["key"][i]));
    for (std::size_t i = 0; i < 4; ++i) CHECK(counter[i] == word(each["counter"][i]));
    const hmarl::Words words = hmarl::philox(key, counter, each["words"].size());
    for (std::size_t i = 0; i < words.size(); ++i) CHECK(words[i] == word(each["words"][i]));
    const std::vector<float> drawn = source.draw(word(each["seed"]), word(each["step"]));
    for (std::size_t i = 0; i < drawn.size(); ++i) {
      const float expected = each["values"][i];
      CHECK(normal ? std::abs(drawn[i] - expected) <= 2.4e-7F * std::abs(expected) : drawn[i] == expected);
    }
  }
}

// A message as proto3's JSON mapping writes it.
struct ToJson {
  Json json = Json::object();
  void operator()(int, const char* name, std::uint64_t value) { if (value) json[name] = std::to_string(value); }
  void operator()(int, const char* name, bool value) { if (value) json[name] = true; }
  void operator()(int, const char* name, std::int32_t value) { if (value) json[name] = value; }
  void operator()(int, const char* name, double value) { if (value != 0) json[name] = value; }
  void operator()(int, const char* name, const std::string& value) { if (!value.empty()) json[name] = value; }
  void operator()(int, const char* name, const wire::Bytes& value) { if (!value.empty()) json[name] = base64(value); }
  void operator()(int, const char* name, wire::DataType value) {
    static const char* const names[] = {"", "DATA_TYPE_FLOAT32", "DATA_TYPE_INT64", "DATA_TYPE_BOOL", "DATA_TYPE_UINT8"};
    if (value != wire::DataType::unspecified) json[name] = names[static_cast<int>(value)];
  }
  void operator()(int, const char* name, wire::InstructionChoice value) {
    static const char* const names[] = {"", "INSTRUCTION_CHOICE_ARGMAX", "INSTRUCTION_CHOICE_SAMPLE", "INSTRUCTION_CHOICE_COMMON"};
    if (value != wire::InstructionChoice::unspecified) json[name] = names[static_cast<int>(value)];
  }
  void operator()(int, const char* name, const std::vector<std::int64_t>& values) {
    for (const std::int64_t value : values) json[name].push_back(std::to_string(value));
  }
  void operator()(int, const char*, const std::optional<wire::Bytes>&) {}  // the body of a frame: see check_frame
  template <class Message> void operator()(int, const char* name, const std::optional<Message>& message) {
    if (message) json[name] = of(*message);
  }
  template <class Value> void operator()(int, const char* name, const std::map<std::string, Value>& entries) {
    for (const auto& [key, value] : entries) {
      if constexpr (std::is_same_v<Value, std::string>) json[name][key] = value;
      else json[name][key] = of(value);
    }
  }
  template <class Message> static Json of(const Message& message) {
    ToJson writer;
    Message::fields(message, writer);
    return writer.json;
  }
};

template <class Message> static void check_message(const Json& each) {
  const std::string bytes = from_hex(each["hex"]);
  const auto message = wire::decode<Message>(bytes);
  CHECK(wire::encode(message) == bytes);
  CHECK(ToJson::of(message) == each["json"]);
  // Fields of later versions, of each kind, are left out.
  const std::string later = from_hex("f87f01" "f97f0102030405060708" "fa7f02ffff" "fd7f01020304");
  CHECK(wire::encode(wire::decode<Message>(later + bytes + later)) == bytes);
}

static void messages() {
  const std::map<std::string, std::function<void(const Json&)>> checks = {
      {"GetAgentInfoRequest", check_message<wire::GetAgentInfoRequest>}, {"GetAgentInfoResponse", check_message<wire::GetAgentInfoResponse>},
      {"StartEpisodeRequest", check_message<wire::StartEpisodeRequest>}, {"StartEpisodeResponse", check_message<wire::StartEpisodeResponse>},
      {"ActRequest", check_message<wire::ActRequest>}, {"ActResponse", check_message<wire::ActResponse>},
      {"StreamActRequest", check_message<wire::StreamActRequest>}, {"StreamActResponse", check_message<wire::StreamActResponse>},
      {"EndEpisodeRequest", check_message<wire::EndEpisodeRequest>}, {"EndEpisodeResponse", check_message<wire::EndEpisodeResponse>}};
  for (const Json& each : vectors("messages")) checks.at(each["type"])(each);
  for (const std::string& bytes : {std::string("\xff"), std::string("\x0a\x05"), std::string("\x00\x01", 2), std::string("\x0b")}) {
    check_throws<wire::WireError>([&] { wire::decode<wire::ActRequest>(bytes); }, "");
  }
}

template <class Frame, class Act, class Start, class End, class Info, class Health> static void check_frame(const Json& each) {
  const std::string bytes = from_hex(each["hex"]);
  wire::Reader reader(bytes);
  const auto message = std::string(reader.take(reader.varint()));
  CHECK(reader.done());
  const auto frame = wire::decode<Frame>(message);
  CHECK(wire::encode(frame) == message);
  Json json = ToJson::of(frame);
  if (frame.act) json["act"] = ToJson::of(wire::decode<Act>(*frame.act));
  if (frame.start_episode) json["start_episode"] = ToJson::of(wire::decode<Start>(*frame.start_episode));
  if (frame.end_episode) json["end_episode"] = ToJson::of(wire::decode<End>(*frame.end_episode));
  if (frame.get_agent_info) json["get_agent_info"] = ToJson::of(wire::decode<Info>(*frame.get_agent_info));
  if (frame.check_health) json["check_health"] = ToJson::of(wire::decode<Health>(*frame.check_health));
  if (json != each["json"]) throw std::runtime_error(each["name"].get<std::string>() + ": got " + json.dump());
}

// Those of docs/frames.md.
static void frame_messages() {
  for (const Json& each : vectors("frames")["frames"]) {
    if (each["message"] == "FrameRequest") {
      check_frame<wire::FrameRequest, wire::ActRequest, wire::StartEpisodeRequest, wire::EndEpisodeRequest, wire::GetAgentInfoRequest,
                  wire::CheckHealthRequest>(each);
    } else {
      check_frame<wire::FrameResponse, wire::ActResponse, wire::StartEpisodeResponse, wire::EndEpisodeResponse, wire::GetAgentInfoResponse,
                  wire::CheckHealthResponse>(each);
    }
  }
}

// How requests travel, by name.
struct Door {
  std::string name;
  std::function<std::unique_ptr<hmarl::Transport>(const AgentProcess&)> open;
};

static std::vector<Door> doors() {
  std::vector<Door> doors;
#ifdef HMARL_WITH_GRPC
  for (const bool stream : {false, true}) {
    doors.push_back({stream ? "gRPC, streamed" : "gRPC", [stream](const AgentProcess& agent) {
      hmarl::GrpcOptions options;
      options.stream = stream;
      return hmarl::over_grpc(agent.address, options);
    }});
  }
#endif
  if (serves_frames()) doors.push_back({"frames", [](const AgentProcess& agent) { return hmarl::frames(agent.socket_path()); }});
  return doors;
}

static hmarl::Episode start_of(const Json& episode) {
  const Json& start = episode["start"];
  const std::string choice = start["instruction_choice"].is_null() ? "" : start["instruction_choice"];
  return hmarl::Episode(word(start["seed"]), start["sample"], choice, start["first_step"]);
}

static void check_row(const Json& row, const hmarl::Action& action) {
  CHECK(action.step == row["step"] && action.fresh);
  const std::vector<double> expected = row["action"].is_array() ? row["action"].get<std::vector<double>>() : std::vector<double>{row["action"]};
  CHECK(action.value.choices.size() + action.value.numbers.size() == expected.size());
  for (std::size_t i = 0; i < action.value.choices.size(); ++i) CHECK(static_cast<double>(action.value.choices[i]) == expected[i]);
  for (std::size_t i = 0; i < action.value.numbers.size(); ++i) CHECK(near(action.value.numbers[i], expected[i]));
  for (const auto& [name, numbers] : row["diagnostics"].items()) {
    const auto& got = action.diagnostics.at(name);
    const Json wanted = numbers.is_array() ? numbers : Json::array({numbers});
    CHECK(got.size() == wanted.size());
    for (std::size_t i = 0; i < got.size(); ++i) CHECK(near(got[i], wanted[i]));
  }
}

static std::optional<hmarl::Mask> mask_of(const Json& row) {
  if (!row.contains("action_mask")) return std::nullopt;
  hmarl::Mask mask;
  for (const bool legal : row["action_mask"]) mask.push_back(legal);
  return mask;
}

static void episodes(const Door& door, std::map<std::string, AgentProcess*>& agents) {
  for (const Json& episode : vectors("episodes")) {
    hmarl::ClientOptions options;
    options.diagnostics = true, options.timeout = hmarl::Seconds{10};
    hmarl::AgentClient agent(door.open(*agents.at(episode["agent"])), options);
    agent.reset(start_of(episode));
    for (const Json& row : episode["steps"]) {
      if (row["replayed"]) continue;      // a client sends nothing twice,
      if (row["missed_steps"] > 0) break; // and leaves no step out
      const auto mask = mask_of(row);
      check_row(row, agent.act(row["observation"], mask ? &*mask : nullptr));
    }
    CHECK(agent.statistics().fallbacks == 0);
  }
}

static void refusals(const Door& door, std::map<std::string, AgentProcess*>& agents) {
  const Json errors = vectors("errors");
  const std::map<std::string, hmarl::Method> methods = {{"GetAgentInfo", hmarl::Method::get_agent_info}, {"StartEpisode", hmarl::Method::start_episode},
                                                        {"Act", hmarl::Method::act}, {"EndEpisode", hmarl::Method::end_episode}};
  const std::string placeholder = errors["placeholder"];
  for (const Json& each : errors["refused"]) {
    if (door.name != "gRPC" && !each.contains("text")) continue;  // no message, and so none that fits into another
    const auto transport = door.open(*agents.at(errors["agent"]));
    const auto later = [] { return hmarl::Clock::now() + std::chrono::seconds(10); };
    const auto started = wire::decode<wire::StartEpisodeResponse>(transport->call(hmarl::Method::start_episode, from_hex(errors["before"]["start"]), later()));
    const auto own = [&](std::string bytes) {
      for (std::size_t at; (at = bytes.find(placeholder)) != std::string::npos;) bytes.replace(at, placeholder.size(), started.session_id);
      return bytes;
    };
    transport->call(hmarl::Method::act, own(from_hex(errors["before"]["act"])), later());
    try {
      transport->call(methods.at(each["method"]), own(from_hex(each["hex"])), later());
      CHECK(false);
    } catch (const hmarl::CallFailed& failure) {
      if (static_cast<int>(failure.code) != each["number"] || failure.details != own(each["message"])) {
        throw std::runtime_error(each["name"].get<std::string>() + ": got " + failure.what());
      }
    }
  }
}

static const std::vector<float> seen = {0, 0.25, -0.5, 1, -2, 0.75};
static const hmarl::Mask legal = {1, 1, 1, 1, 1};

static hmarl::ClientOptions options_of(double timeout_s, hmarl::FallbackPtr fallback) {
  hmarl::ClientOptions options;
  options.timeout = hmarl::Seconds{timeout_s}, options.fallback = std::move(fallback);
  return options;
}

// From a step on, each time with another observation: no late reply to an earlier step is taken.
static hmarl::Action until_fresh(hmarl::AgentClient& client, std::uint64_t step) {
  const auto deadline = hmarl::Clock::now() + std::chrono::seconds(30);
  for (;; ++step) {
    std::vector<float> now = seen;
    now[0] = static_cast<float>(step);
    hmarl::Action action = client.act(now, legal);
    CHECK(action.step == step);
    if (action.fresh) return action;
    CHECK(hmarl::Clock::now() < deadline);
  }
}

// A peer that describes itself as an agent of the bundle, and answers every act alike.
class Answering : public hmarl::Transport {
 public:
  Answering(Json model, std::string reply) : model_(std::move(model)), reply_(std::move(reply)) {}
  std::string call(hmarl::Method method, const std::string&, hmarl::Clock::time_point) override {
    const std::string id = model_["id"];
    if (method == hmarl::Method::get_agent_info) {
      wire::GetAgentInfoResponse info;
      info.agent_id = id, info.agent_manifest_json = model_.dump(), info.bundle_sha256 = "some";
      return wire::encode(info);
    }
    if (method == hmarl::Method::start_episode) {
      wire::StartEpisodeResponse started;
      started.session_id = "one", started.agent_id = id, started.bundle_sha256 = "some";
      return wire::encode(started);
    }
    return method == hmarl::Method::act ? reply_ : std::string{};
  }
  void renew() override {}
  std::string address() const override { return "here"; }

 private:
  Json model_;
  std::string reply_;
};

static void answered_actions() {
  std::ifstream file(vectors_folder + "/bundle/manifest.json");
  const Json models = Json::parse(file)["agents"];
  for (const Json& each : vectors("actions")) {
    const auto model = std::find_if(models.begin(), models.end(), [&](const Json& one) { return one["id"] == each["agent"]; });
    const auto hold = std::make_shared<hmarl::Hold>(hmarl::Hold::forever, 9, std::make_shared<hmarl::Zero>());
    hmarl::AgentClient client(std::make_unique<Answering>(*model, from_hex(each["hex"])), options_of(10, hold));
    client.reset(hmarl::Episode(1));
    const auto mask = mask_of(each);
    const std::vector<float> zeros(6);
    if (!each.contains("action")) {
      check_throws<hmarl::AgentError>([&] { client.act(zeros, mask ? &*mask : nullptr); }, each["name"] == "another step's" ? "step 1" : "action");
      CHECK(client.statistics().fresh == 0);
      continue;
    }
    check_row({{"step", 0}, {"action", each["action"]}, {"diagnostics", Json::object()}}, client.act(zeros, mask ? &*mask : nullptr));
  }
}

// What no longer is an action is not held.
static void held_actions() {
  hmarl::Spec spec;
  spec.branches = {5};
  const hmarl::Hold hold(hmarl::Hold::forever, 9, std::make_shared<hmarl::Zero>());
  for (const std::int64_t choice : {99, -1}) {
    const hmarl::Value last{{choice}, {}};
    CHECK(hold.decide({1, spec, nullptr, &last, hmarl::Seconds{0}, 1, ""}).choice() == 0);
  }
}

static void wrong_inputs(const Door& door, AgentProcess& agent) {
  hmarl::AgentClient client(door.open(agent));
  check_throws<hmarl::AgentError>([&] { client.act(seen, legal); }, "no episode");
  client.reset(hmarl::Episode(1));
  std::vector<float> wrong = seen;
  wrong[3] = NAN;
  check_throws<hmarl::ObservationError>([&] { client.act(wrong, legal); }, "observation[3]: got nan");
  check_throws<hmarl::ObservationError>([&] { client.act({1, 2}, legal); }, "got 2 numbers, expected 6");
  check_throws<hmarl::ObservationError>([&] { client.act(seen); }, "mask: got nothing, expected 5");
  check_throws<hmarl::ObservationError>([&] { client.act(seen, hmarl::Mask{0, 0, 0, 0, 0}); }, "no legal action");
  check_throws<hmarl::UsageError>([&] { client.reset(hmarl::Episode(1, true, "maybe")); }, "got maybe");
  check_throws<hmarl::UsageError>([] { hmarl::Hold(hmarl::Hold::forever); }, "must expire");
  client.reset(hmarl::Episode(1));
  CHECK(client.act(seen, legal).step == 0);
}

// A frozen agent: the fallback acts in time, and the policy again afterwards.
static void frozen(const Door& door, AgentProcess& agent) {
  const auto then = std::make_shared<hmarl::Fixed>(hmarl::Value{{3}, {}});
  hmarl::AgentClient client(door.open(agent), options_of(0.2, std::make_shared<hmarl::Hold>(hmarl::Hold::forever, 2, then)));
  client.reset(hmarl::Episode(1, true));
  const hmarl::Action fresh = client.act(seen, legal);
  hmarl::Mask masked = legal;
  masked[static_cast<std::size_t>(fresh.value.choice())] = masked[3] = 0;
  agent.freeze();
  const hmarl::Action held = client.act(seen, legal), illegal = client.act(seen, masked), expired = client.act(seen, legal);
  agent.thaw();
  CHECK(fresh.fresh && !held.fresh && held.step == 1 && held.value == fresh.value);
  CHECK(held.latency.count() > 0.19 && held.latency.count() < 5);
  CHECK(illegal.value.choice() == std::find(masked.begin(), masked.end(), 1) - masked.begin());
  CHECK(expired.value.choice() == 3);
  until_fresh(client, 4);
  CHECK(client.statistics().rejoins == 0 && client.statistics().fallbacks >= 3);
}

// An agent that was killed is joined again at the current step; but not once a held action has expired.
static void killed(const Door& door, AgentProcess& agent) {
  hmarl::AgentClient client(door.open(agent), options_of(0.3, std::make_shared<hmarl::Zero>()));
  hmarl::AgentClient stopped(door.open(agent), options_of(0.3, std::make_shared<hmarl::Hold>(hmarl::Seconds{0.1})));
  client.reset(hmarl::Episode(1, true));
  stopped.reset(hmarl::Episode(1, true));
  for (int step = 0; step < 3; ++step) client.act(seen, legal), stopped.act(seen, legal);
  agent.kill();
  CHECK(!client.act(seen, legal).fresh);
  check_throws<hmarl::StaleActionError>([&] { stopped.act(seen, legal); }, "step 3: ");
  agent.start();
  until_fresh(client, 4);
  CHECK(client.statistics().rejoins == 1 && client.statistics().state_resets == 1);
  for (int tries = 0; tries < 3; ++tries) check_throws<hmarl::StaleActionError>([&] { stopped.act(seen, legal); }, "");
  CHECK(stopped.statistics().rejoins == 0);
  stopped.reset(hmarl::Episode(1));
  CHECK(stopped.act(seen, legal).fresh);
}

// Another agent at the address is never obeyed.
static void replaced(const Door& door, AgentProcess& agent) {
  hmarl::AgentClient client(door.open(agent), options_of(3, std::make_shared<hmarl::Zero>()));
  client.reset(hmarl::Episode(1));
  agent.kill();
  agent.serve("branches");
  check_throws<hmarl::AgentError>([&] { client.act(seen, legal); }, "got agent 'branches', expected 'discrete'");
  agent.kill();
  agent.serve("discrete");
}

#ifdef HMARL_WITH_ONNX
static void in_process() {
  const hmarl::Bundle bundle(vectors_folder + "/bundle");
  CHECK(bundle.sha256() == vectors("hashes")["bundle_sha256"]);
  check_throws<hmarl::BundleError>([] { hmarl::Bundle(vectors_folder + "/bundle", std::string(64, '0')); }, "expected 000");
  for (const Json& episode : vectors("episodes")) {
    hmarl::LocalAgent agent(bundle, episode["agent"]);
    agent.reset(start_of(episode));
    for (const Json& row : episode["steps"]) {
      for (const auto& [name, numbers] : row["states"].items()) {
        if (row["replayed"]) continue;
        for (std::size_t i = 0; i < numbers.size(); ++i) CHECK(near(agent.states().at(name).at(i), numbers[i]));
      }
      const auto mask = mask_of(row);
      const hmarl::Action action = agent.act(row["observation"], mask ? &*mask : nullptr, row["step"]);
      check_row(row, action);
      CHECK(action.replayed == row["replayed"] && action.missed_steps == row["missed_steps"]);
    }
    check_throws<hmarl::StepOrderError>([&] {
      const auto mask = mask_of(episode["steps"][0]);
      agent.act(episode["steps"][0]["observation"], mask ? &*mask : nullptr, 0);
    }, "step: got 0");
  }
}
#endif

static int passed = 0, failed = 0;
static void run(const std::string& name, const std::function<void()>& test) {
  try {
    test();
    ++passed;
    std::cout << "ok " << name << std::endl;
  } catch (const std::exception& error) {
    ++failed;
    std::cout << "FAILED " << name << ": " << error.what() << std::endl;
  }
}

int main(int count, char** arguments) {
  if (count > 1) vectors_folder = arguments[1];
  run("hashes", hashes);
  run("noise", noise);
  run("messages", messages);
  run("actions that are answered", answered_actions);
  run("actions that are held", held_actions);
  if (serves_frames()) run("frames", frame_messages);
#ifdef HMARL_WITH_ONNX
  run("episodes in process", in_process);
#else
  std::cout << "skipped: episodes in process (built without ONNX Runtime's headers: make ORT_INCLUDE=... ORT_LIB=...)" << std::endl;
#endif
  const std::string bundle = vectors_folder + "/bundle", stem = "/tmp/hmarl-cpp-" + std::to_string(getpid()) + "-";
  AgentProcess discrete(bundle, "discrete", stem + "0"), branches(bundle, "branches", stem + "1"), continuous(bundle, "continuous", stem + "2");
  std::map<std::string, AgentProcess*> agents = {{"discrete", &discrete}, {"branches", &branches}, {"continuous", &continuous}};
  if (!serves_frames()) std::cout << "skipped: frames (this hmarl-agent has no --frames)" << std::endl;
  for (const Door& door : doors()) {
    run("episodes, " + door.name, [&] { episodes(door, agents); });
    run("refusals, " + door.name, [&] { refusals(door, agents); });
    run("wrong inputs, " + door.name, [&] { wrong_inputs(door, discrete); });
    run("a frozen agent, " + door.name, [&] { frozen(door, discrete); });
    run("a killed agent, " + door.name, [&] { killed(door, discrete); });
    run("a replaced agent, " + door.name, [&] { replaced(door, discrete); });
  }
  std::cout << passed << " passed, " << failed << " failed" << std::endl;
  return failed > 0;
}
