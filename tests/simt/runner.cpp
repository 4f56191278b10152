// Blocks, their threads, and where these meet.
#include "runner.h"

#include <dlfcn.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <string>

#include "fibers.h"

namespace simt {

Place place;

namespace {

constexpr size_t dynamic_by_default = 48 << 10;
constexpr char barrier[] = "__syncthreads";

struct Thread {
  enum State { fresh, ready, waiting, ended } state;
  int fiber;  // unless it is fresh
  // Where it waits, if it does.
  const char* what;
  unsigned mask;
  void* mine;
  const void* caller;
};

Thread threads[most_threads];
Launch now;
int thread_count, threads_left, running = -1, waiting_at_barrier;
std::string fault;

bool reverse_threads, reverse_blocks;
int64_t launches;
int processors = 1, shared_bytes = int(most_dynamic);
int64_t first_block, most_blocks;
std::map<void (*)(), size_t> allowed_dynamic;

uint3 position(unsigned index, const dim3& size) {
  return {index % size.x, index / size.x % size.y, index / size.x / size.y};
}

// The thread that runs stops, until it is gone on with.
void pause() { to_host(threads[running].fiber); }

void begin(int thread, int fiber) {
  running = thread;
  place.thread = position(thread, now.threads);
  threads[thread].fiber = fiber;
}

// What a fiber does: a thread, and those after it, until one waits or the next has been begun. So threads that never
// wait share one fiber, without a switch.
void live() {
  arrive_on_new_stack();
  for (;;) {
    now.call(now.kernel, now.arguments);
    threads[running].state = Thread::ended;
    --threads_left;
    const int next = running + (reverse_threads ? -1 : 1);
    if (next >= 0 && next < thread_count && threads[next].state == Thread::fresh)
      begin(next, threads[running].fiber);
    else
      pause();
  }
}

// Goes on with a thread, and maybe with others after it, until one waits.
void run(int thread) {
  const int fiber = threads[thread].state == Thread::fresh ? take_fiber() : threads[thread].fiber;
  begin(thread, fiber);
  to_fiber(fiber);
  if (threads[running].state == Thread::ended) leave_fiber(fiber);
  running = -1;
}

void describe(int thread, const char* text, const void* caller) {
  Dl_info library = {};
  dladdr(caller, &library);
  const uint3 t = position(thread, now.threads), b = place.block;
  const size_t offset = static_cast<const char*>(caller) - static_cast<const char*>(library.dli_fbase);
  char line[512];
  snprintf(line, sizeof line, "block (%u, %u, %u), thread (%u, %u, %u) at 0x%zx: %s", b.x, b.y, b.z, t.x, t.y, t.z,
           offset, text);
  fault = line;
}

// Whether a thread waits where `other` does.
bool together(const Thread& thread, const Thread& other) {
  return thread.state == Thread::waiting && thread.mask == other.mask && strcmp(thread.what, other.what) == 0;
}

std::string where_it_waits(const Thread& thread) {
  if (thread.what == barrier) return thread.what;
  char text[64];
  snprintf(text, sizeof text, "%s of lanes %08x", thread.what, thread.mask);
  return text;
}

// No thread can go on: says whom the first of those that wait waits for.
void describe_missing() {
  int waits = 0;
  while (threads[waits].state != Thread::waiting) ++waits;
  const Thread& one = threads[waits];
  const bool all = one.what == barrier;
  int missing = all ? 0 : waits / warp * warp;
  for (;; ++missing) {
    const bool named = all || (one.mask >> missing % warp & 1);
    if (named && (missing >= thread_count || !together(threads[missing], one))) break;
  }
  std::string text = "waits at " + where_it_waits(one) + " for thread " + std::to_string(missing) + ", which ";
  if (missing >= thread_count)
    text += "is not in the block";
  else if (threads[missing].state == Thread::waiting)
    text += "waits at " + where_it_waits(threads[missing]);
  else
    text += "has ended";
  describe(waits, text.c_str(), one.caller);
}

void run_block() {
  begin_block(now.dynamic_bytes);
  waiting_at_barrier = 0;
  threads_left = thread_count;
  for (int k = 0; k < thread_count; ++k) threads[k].state = Thread::fresh;
  while (threads_left > 0 && fault.empty()) {
    bool moved = false;
    for (int k = 0; k < thread_count && fault.empty(); ++k) {
      const int thread = reverse_threads ? thread_count - 1 - k : k;
      if (threads[thread].state != Thread::ready && threads[thread].state != Thread::fresh) continue;
      run(thread);
      moved = true;
    }
    if (!moved) describe_missing();
  }
}

void wait_there(const char* what, unsigned mask, void* mine, const void* caller) {
  Thread& me = threads[running];
  me.state = Thread::waiting;
  me.what = what, me.mask = mask, me.mine = mine, me.caller = caller;
}

}  // namespace

int thread_index() { return running; }

int lane() { return running % warp; }

void fail(const char* text, const void* caller) {
  describe(running, text, caller);
  pause();
  abort();  // nobody returns to a thread at fault
}

void meet(const char* what, unsigned mask, void* mine, void (*act)(void* const* lanes), const void* caller) {
  if (!(mask >> lane() & 1)) fail("is not in the mask it gives", caller);
  wait_there(what, mask, mine, caller);
  Thread* const first = threads + running / warp * warp;
  void* lanes[warp] = {};
  for (int k = 0; k < warp; ++k) {
    if (!(mask >> k & 1)) continue;
    if (first + k >= threads + thread_count || !together(first[k], threads[running])) return pause();
    lanes[k] = first[k].mine;
  }
  act(lanes);
  for (int k = 0; k < warp; ++k)
    if (lanes[k]) first[k].state = Thread::ready;
}

unsigned ballot(const char* what, unsigned mask, bool vote, const void* caller) {
  unsigned mine = vote;
  meet(
      what, mask, &mine,
      [](void* const* lanes) {
        unsigned all = 0;
        for (int k = 0; k < warp; ++k)
          if (lanes[k]) all |= *static_cast<unsigned*>(lanes[k]) << k;
        for (int k = 0; k < warp; ++k)
          if (lanes[k]) *static_cast<unsigned*>(lanes[k]) = all;
      },
      caller);
  return mine;
}

cudaError_t allow_dynamic_bytes(void (*kernel)(), int bytes) {
  if (bytes < 0 || size_t(bytes) > most_dynamic) return cudaErrorInvalidValue;
  allowed_dynamic[kernel] = bytes;
  return cudaSuccess;
}

cudaError_t launch(const Launch& launch) {
  const uint64_t count = uint64_t(launch.threads.x) * launch.threads.y * launch.threads.z;
  const int64_t blocks = int64_t(launch.blocks.x) * launch.blocks.y * launch.blocks.z;
  if (count == 0 || count > most_threads || blocks == 0) return cudaErrorInvalidConfiguration;
  const auto allowed = allowed_dynamic.find(launch.kernel);
  if (launch.dynamic_bytes > (allowed == allowed_dynamic.end() ? dynamic_by_default : allowed->second))
    return cudaErrorInvalidValue;
  ++launches;
  now = launch;
  thread_count = int(count);
  place.threads = launch.threads, place.blocks = launch.blocks;
  fault.clear();
  prepare_fibers(live);
  const int64_t end = most_blocks ? std::min(blocks, first_block + most_blocks) : blocks;
  for (int64_t k = first_block; k < end && fault.empty(); ++k) {
    place.block = position(unsigned(reverse_blocks ? first_block + end - 1 - k : k), launch.blocks);
    run_block();
    forget_copies();
  }
  return fault.empty() ? cudaSuccess : cudaErrorLaunchFailure;
}

}  // namespace simt

void __syncthreads() {
  using namespace simt;
  wait_there(barrier, 0xFFFFFFFFu, nullptr, __builtin_return_address(0));
  if (++waiting_at_barrier < thread_count) return pause();
  waiting_at_barrier = 0;
  for (int k = 0; k < thread_count; ++k) threads[k].state = Thread::ready;
  block_met();
}

void __syncwarp(unsigned mask) {
  int one;
  simt::meet(
      "__syncwarp", mask, &one,
      [](void* const* lanes) {
        for (int k = 0; k < simt::warp; ++k)
          if (!lanes[k]) return;  // of fewer than all lanes: orders nothing, so what relies on it is found at fault
        simt::warp_met(simt::thread_index() / simt::warp);
      },
      __builtin_return_address(0));
}

unsigned __ballot_sync(unsigned mask, int vote) {
  return simt::ballot("__ballot_sync", mask, vote, __builtin_return_address(0));
}

int __any_sync(unsigned mask, int vote) {
  return simt::ballot("__any_sync", mask, vote, __builtin_return_address(0)) != 0;
}

int __all_sync(unsigned mask, int vote) {
  return simt::ballot("__all_sync", mask, vote, __builtin_return_address(0)) == mask;
}

const char* cudaGetErrorString(cudaError_t error) {
  switch (error) {
    case cudaSuccess: return "no error";
    case cudaErrorInvalidValue: return "invalid argument";
    case cudaErrorInvalidConfiguration: return "invalid configuration argument";
    default: return simt::fault.c_str();
  }
}

cudaError_t cudaGetDevice(int* device) {
  *device = 0;
  return cudaSuccess;
}

cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr which, int) {
  *value = which == cudaDevAttrMultiProcessorCount ? simt::processors : simt::shared_bytes;
  return cudaSuccess;
}

// What the host's code is told of the device.
extern "C" void simt_device(int processors, int shared_bytes) {
  simt::processors = processors, simt::shared_bytes = shared_bytes;
}

extern "C" int64_t simt_launches() { return simt::launches; }

extern "C" void simt_order(bool threads_reversed, bool blocks_reversed) {
  simt::reverse_threads = threads_reversed, simt::reverse_blocks = blocks_reversed;
}

// Runs only `count` blocks of a grid; 0: all.
extern "C" void simt_blocks(int64_t first, int64_t count) { simt::first_block = first, simt::most_blocks = count; }
