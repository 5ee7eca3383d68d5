// A real hmarl-agent, which can be frozen, killed and started again at the same addresses.
#pragma once

#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <sys/wait.h>
#include <unistd.h>
#include <vector>

#include "hmarl/agent.hpp"

inline std::string python() {
  const char* const given = std::getenv("HMARL_PYTHON");
  return given ? given : "../../.venv/bin/python";
}

// Whether this version of hmarl serves frames.
inline bool serves_frames() {
  static const bool known = std::system((python() + " -m hmarl.runtime.commands.agent --help | grep -q -- --frames").c_str()) == 0;
  return known;
}

class AgentProcess {
 public:
  AgentProcess(std::string bundle, std::string agent, std::string socket_path)
      : bundle_(std::move(bundle)), agent_(std::move(agent)), socket_path_(std::move(socket_path)) { start(); }
  ~AgentProcess() { kill(); unlink(socket_path_.c_str()); }
  AgentProcess(const AgentProcess&) = delete;
  AgentProcess& operator=(const AgentProcess&) = delete;

  std::string address = "127.0.0.1:0";
  const std::string& socket_path() const { return socket_path_; }

  void start() {
    std::vector<std::string> words = {python(), "-m", "hmarl.runtime.commands.agent", bundle_, "--agent", agent_, "--listen",
                                      address, "--json", "--log-level", "error"};
    if (serves_frames()) words.insert(words.end(), {"--frames", socket_path_});
    int ends[2];
    if (pipe(ends) != 0) throw std::runtime_error("no pipe");
    process_ = fork();
    if (process_ == 0) {
      dup2(ends[1], 1);
      close(ends[0]);
      std::vector<char*> arguments;
      for (std::string& word : words) arguments.push_back(word.data());
      arguments.push_back(nullptr);
      execv(arguments[0], arguments.data());
      std::perror(arguments[0]);
      _exit(127);
    }
    close(ends[1]);
    std::string line;
    for (char each = 0; read(ends[0], &each, 1) == 1 && each != '\n';) line.push_back(each);
    close(ends[0]);
    if (line.empty()) throw std::runtime_error("hmarl-agent did not start");
    const std::string said = hmarl::Json::parse(line).at("address");
    address = said;
  }
  // Another agent of the bundle at the same addresses.
  void serve(const std::string& agent) {
    agent_ = agent;
    start();
  }
  void freeze() { ::kill(process_, SIGSTOP); }
  void thaw() { ::kill(process_, SIGCONT); }
  void kill() {
    if (process_ <= 0) return;
    ::kill(process_, SIGKILL);
    waitpid(process_, nullptr, 0);
    process_ = 0;
  }

 private:
  std::string bundle_, agent_, socket_path_;
  pid_t process_ = 0;
};
