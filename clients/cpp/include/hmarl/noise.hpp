// Random numbers of deployed policies: a pure function of (seed, agent, step, noise input), the same in all languages.
// proto/conformance/README.md specifies them.
#pragma once

#include <array>
#include <cmath>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "hmarl/hash.hpp"

namespace hmarl {

using Words = std::vector<std::uint64_t>;
using Key = std::array<std::uint64_t, 2>;
using Counter = std::array<std::uint64_t, 4>;

// Philox4x64-10. Word 0 of the counter is raised before each block of four words; it never overflows here.
inline Words philox(Key key, Counter counter, std::size_t count) {
  Words words;
  while (words.size() < count) {
    ++counter[0];
    auto [c0, c1, c2, c3] = counter;
    auto [k0, k1] = key;
    for (int round = 0; round < 10; ++round) {
      const auto first = static_cast<unsigned __int128>(0xd2e7470ee14c6c93) * c0;
      const auto second = static_cast<unsigned __int128>(0xca5a826395121157) * c2;
      c0 = static_cast<std::uint64_t>(second >> 64) ^ c1 ^ k0;
      c2 = static_cast<std::uint64_t>(first >> 64) ^ c3 ^ k1;
      c1 = static_cast<std::uint64_t>(second);
      c3 = static_cast<std::uint64_t>(first);
      k0 += 0x9e3779b97f4a7c15;
      k1 += 0xbb67ae8584caa73b;
    }
    words.insert(words.end(), {c0, c1, c2, c3});
  }
  words.resize(count);
  return words;
}

// In the open interval (0, 1), exact in float32.
inline std::vector<float> uniform(const Words& words) {
  std::vector<float> numbers;
  for (const std::uint64_t word : words) numbers.push_back((static_cast<float>(word >> 41) + 0.5F) * 0x1p-23F);
  return numbers;
}

// By Box and Muller, computed in float64: two words a number.
inline std::vector<float> normal(const Words& words) {
  std::vector<float> numbers;
  const std::size_t size = words.size() / 2;
  for (std::size_t i = 0; i < size; ++i) {
    const double radius = (static_cast<double>(words[i] >> 11) + 0.5) * 0x1p-53;
    const double angle = static_cast<double>(words[size + i] >> 11) * (2.0 * 3.141592653589793 * 0x1p-53);
    numbers.push_back(static_cast<float>(std::sqrt(-2.0 * std::log(radius)) * std::cos(angle)));
  }
  return numbers;
}

// Draws one noise input of one agent.
class NoiseSource {
 public:
  NoiseSource(std::string name, std::size_t size, bool normal, bool common, const std::string& agent_id)
      : name_(std::move(name)), size_(size), normal_(normal), stream_(hash64(common ? "common" : "private:" + agent_id)),
        input_(hash64(name_)) {}

  const std::string& name() const { return name_; }
  Key key(std::uint64_t seed) const { return {seed, stream_}; }
  Counter counter(std::uint64_t step) const { return {0, input_, step, 0}; }

  // The numbers of one step.
  std::vector<float> draw(std::uint64_t seed, std::uint64_t step) const {
    const Words words = philox(key(seed), counter(step), normal_ ? 2 * size_ : size_);
    return normal_ ? hmarl::normal(words) : uniform(words);
  }

 private:
  std::string name_;
  std::size_t size_;
  bool normal_;
  std::uint64_t stream_;
  std::uint64_t input_;
};

}  // namespace hmarl
