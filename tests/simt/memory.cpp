// What kernels may read and write: the buffers that the host registered, and shared memory, of each byte of which it is
// known who wrote and read it and when.
//
// Two threads race for a byte if both use it, one of them writes, and neither __syncthreads nor, within a warp, a
// __syncwarp of all its lanes lies between. So a phase number counts the barriers, and one of each warp its own.
#include <link.h>
#include <sanitizer/asan_interface.h>

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <vector>

#include "fibers.h"
#include "runner.h"

using simt::most_dynamic;

// Every `extern __shared__` array: the build gives them this name.
alignas(1024) thread_local unsigned char simt_dynamic_shared[most_dynamic];

namespace simt {
namespace {

struct Buffer {
  uintptr_t begin, end;
  bool writable;
};
std::vector<Buffer> buffers;

struct Use {
  uint32_t phase = 0, warp_phase = 0;
  int thread = 0;
  bool atomic = false;
};

struct Byte {
  Use write, read;     // the last of each
  uint32_t lanes = 0;  // that read it in this phase of their warp
  bool warps = false;  // several warps read it in this phase
  bool expected = false;
};

uint32_t phase = 0, first_phase = 0;  // now, and of the block
uint32_t warp_phase[32];

struct Range {
  uintptr_t begin, end;
  bool has(uintptr_t address, size_t bytes) const { return address >= begin && address + bytes <= end; }
};

// Shared memory is this library's thread-local block. Its constants are what of the library cannot be written.
struct Library {
  Range shared = {};
  std::vector<Range> constants;
  std::vector<Byte> bytes;

  Library() {
    simt_dynamic_shared[0] = 0;  // from now on there is a block
    dl_iterate_phdr(
        [](dl_phdr_info* info, size_t, void* self) {
          auto& library = *static_cast<Library*>(self);
          bool this_one = false;
          std::vector<Range> constants;
          size_t local = 0;
          for (int k = 0; k < info->dlpi_phnum; ++k) {
            const auto& part = info->dlpi_phdr[k];
            const Range range = {info->dlpi_addr + part.p_vaddr, info->dlpi_addr + part.p_vaddr + part.p_memsz};
            if (part.p_type == PT_TLS) local = part.p_memsz;
            if (part.p_type != PT_LOAD) continue;
            if (range.has(reinterpret_cast<uintptr_t>(&buffers), 1)) this_one = true;
            if (!(part.p_flags & PF_W)) constants.push_back(range);
          }
          if (!this_one) return 0;
          const auto block = reinterpret_cast<uintptr_t>(info->dlpi_tls_data);
          library.shared = {block, block + local};
          library.constants = constants;
          return 1;
        },
        this);
    bytes.resize(shared.end - shared.begin);
  }
};

Library& library() {
  static Library one;
  return one;
}

Range dynamic;  // of the launch

bool unordered(const Use& use, int me) {
  return use.phase == phase && use.thread != me &&
         (use.thread / warp != me / warp || use.warp_phase == warp_phase[me / warp]);
}

template <class... Arguments>
[[noreturn]] void reject(const void* caller, const char* format, Arguments... arguments) {
  char text[256];
  snprintf(text, sizeof text, format, arguments...);
  fail(text, caller);
}

const char* verb(Access access) {
  return access == Access::read ? "reads" : access == Access::write ? "writes" : "adds to";
}

void check_shared(uintptr_t address, size_t bytes, Access access, const void* caller) {
  const Range all = {reinterpret_cast<uintptr_t>(simt_dynamic_shared),
                     reinterpret_cast<uintptr_t>(simt_dynamic_shared + most_dynamic)};
  if (address < all.end && address + bytes > all.begin && !dynamic.has(address, bytes))
    reject(caller, "%s %zu bytes at %td of %zu bytes of dynamic shared memory", verb(access), bytes,
           ptrdiff_t(address - dynamic.begin), size_t(dynamic.end - dynamic.begin));
  const int me = thread_index(), my_warp = me / warp;
  const bool reads = access != Access::write, writes = access != Access::read, atomic = access == Access::atomic;
  const uint32_t bit = 1u << lane();
  for (size_t k = 0; k < bytes; ++k) {
    Byte& byte = library().bytes[address - library().shared.begin + k];
    if (byte.expected) reject(caller, "%s shared memory that a copy_async is under way to", verb(access));
    if (reads && byte.write.phase < first_phase) reject(caller, "reads shared memory that nobody wrote");
    if (unordered(byte.write, me) && !(atomic && byte.write.atomic))
      reject(caller, "%s shared memory that thread %d wrote, without a barrier between", verb(access),
             byte.write.thread);
    const bool read_before = byte.read.phase == phase, read_here = byte.read.thread / warp == my_warp;
    const bool same_warp_phase = read_here && byte.read.warp_phase == warp_phase[my_warp];
    if (writes && read_before && (byte.warps || !read_here || (same_warp_phase && (byte.lanes & ~bit))))
      reject(caller, "%s shared memory that other threads read, the last thread %d, without a barrier between",
             verb(access), byte.read.thread);
    const Use use = {phase, warp_phase[my_warp], me, atomic};
    if (writes) byte.write = use;
    if (access != Access::read) continue;
    byte.warps = read_before && (byte.warps || !read_here);
    byte.lanes = (read_before && same_warp_phase ? byte.lanes : 0) | bit;
    byte.read = use;
  }
}

void check_buffers(uintptr_t address, size_t bytes, Access access, const void* caller) {
  const Buffer* nearest = nullptr;
  ptrdiff_t away = 0;
  for (const Buffer& buffer : buffers) {
    if (address >= buffer.begin && address + bytes <= buffer.end) {
      if (buffer.writable || access == Access::read) return;
      reject(caller, "%s %zu bytes of a buffer that is only to be read", verb(access), bytes);
    }
    const ptrdiff_t distance = address < buffer.begin ? buffer.begin - address : address + bytes - buffer.end;
    if (!nearest || distance < away) nearest = &buffer, away = distance;
  }
  if (!nearest) reject(caller, "%s %zu bytes, and there are no buffers", verb(access), bytes);
  reject(caller, "%s %zu bytes at %td of a buffer of %zu bytes", verb(access), bytes,
         ptrdiff_t(address - nearest->begin), size_t(nearest->end - nearest->begin));
}

}  // namespace

void check(const void* pointer, size_t bytes, Access access, const void* caller) {
  const auto address = reinterpret_cast<uintptr_t>(pointer);
  if (!checked || thread_index() < 0 || bytes == 0 || on_a_stack(pointer)) return;
  if (address + bytes > library().shared.begin && address < library().shared.end)
    return check_shared(address, bytes, access, caller);
  if (access == Access::read) {
    const auto index = reinterpret_cast<uintptr_t>(&place);
    if (Range{index, index + sizeof place}.has(address, bytes)) return;
    for (const Range& constants : library().constants)
      if (constants.has(address, bytes)) return;
  }
  check_buffers(address, bytes, access, caller);
}

void begin_block(size_t dynamic_bytes) {
  const Range shared = library().shared;
  first_phase = ++phase;
  dynamic.begin = reinterpret_cast<uintptr_t>(simt_dynamic_shared);
  dynamic.end = dynamic.begin + dynamic_bytes;
  // NaNs, so that what is read before it is written shows without hooks too.
  const Range parts[] = {{shared.begin, dynamic.begin}, {dynamic.begin + most_dynamic, shared.end}, dynamic};
  ASAN_UNPOISON_MEMORY_REGION(simt_dynamic_shared, dynamic_bytes);
  for (const Range& part : parts) memset(reinterpret_cast<void*>(part.begin), 0xFF, part.end - part.begin);
  ASAN_POISON_MEMORY_REGION(simt_dynamic_shared + dynamic_bytes, most_dynamic - dynamic_bytes);
}

void block_met() { ++phase; }

void warp_met(int of_warp) { ++warp_phase[of_warp]; }

bool is_shared(const void* address, size_t bytes) {
  return library().shared.has(reinterpret_cast<uintptr_t>(address), bytes);
}

void expect(void* shared, size_t bytes, bool expected) {
  const size_t first = reinterpret_cast<uintptr_t>(shared) - library().shared.begin;
  for (size_t k = 0; k < bytes; ++k) library().bytes[first + k].expected = expected;
}

}  // namespace simt

extern "C" void simt_register(const void* address, size_t bytes, bool writable) {
  const auto begin = reinterpret_cast<uintptr_t>(address);
  simt::buffers.push_back({begin, begin + bytes, writable});
}

extern "C" void simt_forget_buffers() { simt::buffers.clear(); }
