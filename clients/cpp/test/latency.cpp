// For scripts/client_speed.py: for each number that it reads it acts so many times and prints how long each act took.
//
//   latency grpc|stream|frames ADDRESS
#include <iostream>
#include <optional>

#include "hmarl/client.hpp"
#include "hmarl/frames.hpp"
#ifdef HMARL_WITH_GRPC
#include "hmarl/grpc.hpp"
#endif

static std::unique_ptr<hmarl::Transport> opened(const std::string& door, const std::string& address) {
  if (door == "frames") return hmarl::frames(address);
#ifdef HMARL_WITH_GRPC
  hmarl::GrpcOptions options;
  options.stream = door == "stream";
  return hmarl::over_grpc(address, options);
#else
  throw hmarl::UsageError("built without gRPC");
#endif
}

int main(int, char** arguments) {
  hmarl::ClientOptions options;
  options.timeout = hmarl::Seconds{10};
  hmarl::AgentClient agent(opened(arguments[1], arguments[2]), options);
  const std::vector<float> observation(agent.spec().observation_size, 0.5F);
  const hmarl::Mask mask(agent.spec().mask_size(), 1);
  agent.reset(hmarl::Episode(1));
  for (std::size_t acts = 0; std::cin >> acts;) {
    hmarl::Json took = hmarl::Json::array();
    for (std::size_t act = 0; act < acts; ++act) {
      took.push_back(agent.act(observation, agent.spec().has_mask ? &mask : nullptr).latency.count() * 1e6);
    }
    std::cout << took.dump() << std::endl;
  }
}
