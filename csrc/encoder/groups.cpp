#include "encoder/groups.h"

#include <algorithm>
#include <new>
#include <string>
#include <vector>

#include "common/runtime.h"
#include "encoder/lists.h"

namespace bf {
namespace {

constexpr long kTokens = 512;      // of a group: its intermediates stay in the last cache
constexpr long kLeastTokens = 64;  // fewer would wait for the weights
constexpr double kUneven = 1.06;   // the largest may take so much more than the mean

struct Group {
  std::vector<std::int32_t> sequences;
  long tokens = 0;
  double work = 0;
};

long length_of(const EncoderFwd& p, long sequence) {
  return p.cu_seqlens[sequence + 1] - p.cu_seqlens[sequence];
}

// The longest sequence goes first, each to the group that has least to do.
std::vector<Group> share_out(const EncoderFwd& p, long count) {
  std::vector<std::int32_t> order(p.sequences);
  longest_first(p.cu_seqlens, p.sequences, order.data());
  std::vector<Group> groups(count);
  const double width = static_cast<double>(p.heads * p.head_size);
  const double products = 2.0 * p.hidden * (4 * width + 2 * p.inner), attention = 8 * width;
  for (const std::int32_t sequence : order) {
    const long length = length_of(p, sequence);
    Group& least = *std::min_element(groups.begin(), groups.end(),
                                     [](auto& a, auto& b) { return a.work < b.work; });
    least.sequences.push_back(sequence);
    least.tokens += length;
    least.work += length * (products + attention * length);
  }
  return groups;
}

bool even(const std::vector<Group>& groups) {
  double all = 0, most = 0;
  for (const Group& group : groups) all += group.work, most = std::max(most, group.work);
  return most * groups.size() <= kUneven * all;
}

struct OutOfMemory : std::bad_alloc {
  std::string text;
  const char* what() const noexcept override { return text.c_str(); }
};

}  // namespace

void check_encoder(const EncoderFwd& p) { check_lists(p); }
void check_encoder(const EncoderBwd& p) { check_grads(p); }

Groups make_groups(const EncoderFwd& p) {
  const long each = p.threads * kTokens, turns = (p.tokens + each - 1) / each;
  const long count = turns * p.threads;
  const bool stray = p.cu_seqlens[p.sequences] != p.tokens;  // rows of no sequence
  if (stray || count == 1 || p.sequences < count || p.tokens < count * kLeastTokens) return {};
  const std::vector<Group> groups = share_out(p, count);
  if (!even(groups)) return {};
  Groups found;
  found.count = count;
  auto* order = static_cast<std::int32_t*>(
      scratch(sizeof(std::int32_t) * (2 * p.sequences + 2 * count + 1), Slot::kGroups));
  auto *first = order + p.sequences, *starts = first + count + 1;
  found.order = order, found.first = first, found.starts = starts;
  *first = 0;
  for (const Group& group : groups) {
    std::int32_t at = 0;
    *starts++ = 0;
    for (const std::int32_t sequence : group.sequences) {
      *order++ = sequence;
      *starts++ = at += static_cast<std::int32_t>(length_of(p, sequence));
    }
    const long sequences = static_cast<long>(group.sequences.size());
    first[1] = static_cast<std::int32_t>(*first + sequences), ++first;
    found.tokens = std::max(found.tokens, group.tokens);
    found.sequences = std::max(found.sequences, sequences);
  }
  return found;
}

void no_memory_for_layers(long bytes, long tokens) {
  OutOfMemory error;
  error.text = "no memory for the layers' intermediates: " + std::to_string(bytes) + " bytes for " +
               std::to_string(tokens) + " tokens; give fewer tokens at a time";
  throw error;
}

}  // namespace bf
