// What g++ calls for -fsanitize=thread, alignment and bounds-strict, in place of the sanitizers' own functions. The
// build also gives the calls that kernels make of memcpy and the like to the functions at the end.
#include <cstring>

#include "runner.h"

using simt::Access;

#define SIMT_HOOK(name, bytes, access) \
  void name(const void* address) { simt::check(address, bytes, Access::access, __builtin_return_address(0)); }
#define SIMT_HOOKS(bytes)                              \
  SIMT_HOOK(__tsan_read##bytes, bytes, read)           \
  SIMT_HOOK(__tsan_write##bytes, bytes, write)         \
  SIMT_HOOK(__tsan_unaligned_read##bytes, bytes, read) \
  SIMT_HOOK(__tsan_unaligned_write##bytes, bytes, write)

extern "C" {

SIMT_HOOKS(1)
SIMT_HOOKS(2)
SIMT_HOOKS(4)
SIMT_HOOKS(8)
SIMT_HOOKS(16)

void __tsan_read_range(const void* address, size_t bytes) {
  simt::check(address, bytes, Access::read, __builtin_return_address(0));
}

void __tsan_write_range(const void* address, size_t bytes) {
  simt::check(address, bytes, Access::write, __builtin_return_address(0));
}

void __tsan_init() {}
void __tsan_func_entry(const void*) {}
void __tsan_func_exit() {}

void __ubsan_handle_type_mismatch_v1(const void*, const void*) {
  if (simt::thread_index() >= 0) simt::fail("uses a misaligned address", __builtin_return_address(0));
}

void __ubsan_handle_out_of_bounds(const void*, const void*) {
  if (simt::thread_index() >= 0) simt::fail("indexes past the end of an array", __builtin_return_address(0));
}

void* simt_memcpy(void* to, const void* from, size_t bytes) {
  simt::check(from, bytes, Access::read, __builtin_return_address(0));
  simt::check(to, bytes, Access::write, __builtin_return_address(0));
  return memcpy(to, from, bytes);
}

void* simt_memmove(void* to, const void* from, size_t bytes) {
  simt::check(from, bytes, Access::read, __builtin_return_address(0));
  simt::check(to, bytes, Access::write, __builtin_return_address(0));
  return memmove(to, from, bytes);
}

void* simt_memset(void* to, int value, size_t bytes) {
  simt::check(to, bytes, Access::write, __builtin_return_address(0));
  return memset(to, value, bytes);
}

}  // extern "C"
