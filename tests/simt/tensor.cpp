// Tensor cores, asynchronous copies and atomic additions of the kernels that the CPU runs.
#include <cstdio>
#include <cstring>
#include <deque>
#include <map>
#include <vector>

#include "runner.h"
#include "simt_tensor.h"

namespace simt {
namespace {

struct Copy {
  void* shared;
  const void* global;
};
constexpr size_t copy_bytes = 16;

struct Copies {
  std::deque<std::vector<Copy>> groups;
  std::vector<Copy> uncommitted;
};
std::map<int, Copies> copies;  // of each thread

struct Fragments {
  float* d;
  const uint32_t *a, *b;
};

// Sums k products for each element of d, in order. Element (row, k) of a is where a_at finds it, and so on.
template <int k_count, class A, class B>
void multiply(void* const* lanes, const A& a, const B& b) {
  float sums[16][8];
  for (int lane = 0; lane < warp; ++lane) {
    if (!lanes[lane]) return;
    const auto& own = *static_cast<Fragments*>(lanes[lane]);
    for (int i = 0; i < 4; ++i) {
      const int row = lane / 4 + 8 * (i / 2), column = lane % 4 * 2 + i % 2;
      float sum = own.d[i];
      for (int k = 0; k < k_count; ++k) sum += a(lanes, row, k) * b(lanes, k, column);
      sums[row][column] = sum;
    }
  }
  for (int lane = 0; lane < warp; ++lane)
    for (int i = 0; i < 4; ++i)
      static_cast<Fragments*>(lanes[lane])->d[i] = sums[lane / 4 + 8 * (i / 2)][lane % 4 * 2 + i % 2];
}

const Fragments& of(void* const* lanes, int lane) { return *static_cast<Fragments*>(lanes[lane]); }

float tf32(uint32_t bits) { return __uint_as_float(bits & 0xFFFFE000u); }

float bf16(uint32_t two, int which) { return __uint_as_float((which ? two : two << 16) & 0xFFFF0000u); }

// m16n8k8: A(row, k) is a[i] of a lane, row = lane / 4 + 8 (i % 2), k = lane % 4 + 4 (i / 2); B(k, column) is b[i],
// k = lane % 4 + 4 i, column = lane / 4; D(row, column) is d[i], row = lane / 4 + 8 (i / 2), column = 2 (lane % 4) + i
// % 2.
void multiply_tf32(void* const* lanes) {
  multiply<8>(
      lanes, [](auto lanes, int row, int k) { return tf32(of(lanes, row % 8 * 4 + k % 4).a[row / 8 + k / 4 * 2]); },
      [](auto lanes, int k, int column) { return tf32(of(lanes, column * 4 + k % 4).b[k / 4]); });
}

// m16n8k16: the same with two neighbouring k in a register, k = 2 (lane % 4) + 8 (i / 2) for a, + 8 i for b.
void multiply_bf16(void* const* lanes) {
  multiply<16>(
      lanes,
      [](auto lanes, int row, int k) { return bf16(of(lanes, row % 8 * 4 + k % 8 / 2).a[row / 8 + k / 8 * 2], k % 2); },
      [](auto lanes, int k, int column) { return bf16(of(lanes, column * 4 + k % 8 / 2).b[k / 8], k % 2); });
}

template <class T>
T add(T* to, T value, const void* caller) {
  check(to, sizeof value, Access::atomic, caller);
  const T before = *to;
  *to = before + value;
  return before;
}

}  // namespace

void wait_for_copies(int groups_left, const void* caller) {
  auto& groups = copies[thread_index()].groups;
  for (; int(groups.size()) > groups_left; groups.pop_front()) {
    for (const Copy& copy : groups.front()) {
      expect(copy.shared, copy_bytes, false);
      check(copy.shared, copy_bytes, Access::write, caller);
      memcpy(copy.shared, copy.global, copy_bytes);
    }
  }
}

void forget_copies() {
  for (auto& [thread, of_thread] : copies) {
    of_thread.groups.push_back(of_thread.uncommitted);
    for (const auto& group : of_thread.groups)
      for (const Copy& copy : group) expect(copy.shared, copy_bytes, false);
  }
  copies.clear();
}

}  // namespace simt

namespace fpfast::cuda {

using namespace simt;

void mma_tf32(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  Fragments mine = {d, a, b};
  meet("mma_tf32", 0xFFFFFFFFu, &mine, multiply_tf32, __builtin_return_address(0));
}

void mma_bf16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  Fragments mine = {d, a, b};
  meet("mma_bf16", 0xFFFFFFFFu, &mine, multiply_bf16, __builtin_return_address(0));
}

void copy_async(void* shared, const void* global) {
  const void* const caller = __builtin_return_address(0);
  if (reinterpret_cast<uintptr_t>(shared) % copy_bytes || reinterpret_cast<uintptr_t>(global) % copy_bytes)
    fail("copies 16 bytes from or to a misaligned address", caller);
  if (!is_shared(shared, copy_bytes)) fail("copies to what is not shared memory", caller);
  check(global, copy_bytes, Access::read, caller);
  check(shared, copy_bytes, Access::write, caller);
  expect(shared, copy_bytes, true);
  memset(shared, 0xFF, copy_bytes);
  copies[thread_index()].uncommitted.push_back({shared, global});
}

void commit_async() {
  Copies& mine = copies[thread_index()];
  mine.groups.push_back(std::move(mine.uncommitted));
  mine.uncommitted.clear();
}

}  // namespace fpfast::cuda

float atomicAdd(float* to, float value) { return simt::add(to, value, __builtin_return_address(0)); }
double atomicAdd(double* to, double value) { return simt::add(to, value, __builtin_return_address(0)); }
int atomicAdd(int* to, int value) { return simt::add(to, value, __builtin_return_address(0)); }
unsigned int atomicAdd(unsigned int* to, unsigned int value) {
  return simt::add(to, value, __builtin_return_address(0));
}
