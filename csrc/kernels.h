// What the bindings and the kernels agree on: raw pointers and sizes, no torch.
#pragma once
#include <cstdint>

namespace fpfast {

enum class Dtype : int { float32 = 0, bfloat16 = 1, float16 = 2 };
enum class Kind : int { normal = 0, uniform = 1, rademacher = 2 };

constexpr int max_operands = 4;

// Which noise: words are made from (seed, sample, element / 4, stream, draw).
struct Noise {
  const uint64_t* seeds = nullptr;  // one value, or one per sample; null: no noise
  bool per_sample = false;          // with a seed of its own, every sample is sample 0
  uint64_t first_sample = 0;
  uint32_t stream = 0;
  uint32_t draw = 0;
};

// out[b, e] = ((c0 x0[b, e] + c1 x1[b, e]) + ...) + cz z[b, e];  row b of coef is (c0, c1, c2, c3, cz).
struct Combine {
  float* out;                         // [samples, elements], may be operand 0
  const void* operand[max_operands];  // [samples, elements] each
  Dtype dtype[max_operands];
  int operands;
  const float* coef;  // [5], or [samples, 5]
  bool coef_per_sample;
  Noise noise;
  int64_t samples, elements;
};

}  // namespace fpfast
