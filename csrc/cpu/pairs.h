// Antithetic pairs, their defects, and dot products with probes: what residuals by differences are made of.
#pragma once
#include "noise_blocks.h"

namespace fpfast {
namespace FPFAST_LEVEL {
namespace {

// f(sample, from, to, z) for each stretch of a sample's elements, z the probe there; all stretches of a sample in their
// order, in one thread.
template <Kind kind, class F>
void over_probes(const Probed& op, Part part, int threads, const F& f) {
  const int64_t groups = groups_per_sample(op.elements), together = std::max<int64_t>(1, block_groups / groups);
  const int64_t units = (part.stop - part.start + together - 1) / together;
#pragma omp parallel for num_threads(threads) schedule(static) if (part.elements(op) >= serial_below)
  for (int64_t unit = 0; unit < units; ++unit) {
    alignas(64) float z[block_elements];
    const int64_t first = part.start + unit * together, last = std::min(part.stop, first + together);
    for (int64_t q = first * groups; q < last * groups; q += block_groups) {
      const int64_t count = std::min(block_groups, last * groups - q);
      noise_block<kind>(z, op.noise, q, count, op.samples, op.elements);
      int64_t at = element_of(q, groups, op.elements);
      const int64_t stop = element_of(q + count, groups, op.elements), start = at;
      while (at < stop) {
        const int64_t sample = at / op.elements, to = std::min(stop, (sample + 1) * op.elements);
        f(sample, at, to, z + (at - start));
        at = to;
      }
    }
  }
}

template <class F>
void over_probes(const Probed& op, Part part, int threads, const F& f) {
  if (part.elements(op) == 0) return;
  switch (op.kind) {
    case Kind::normal: return over_probes<Kind::normal>(op, part, threads, f);
    case Kind::uniform: return over_probes<Kind::uniform>(op, part, threads, f);
    case Kind::rademacher: return over_probes<Kind::rademacher>(op, part, threads, f);
  }
}

void pair(const Probed& op, Part part, int threads) {
  float *const plus = op.out, *const minus = op.out + op.samples * op.elements;
  over_probes(op, part, threads, [&](int64_t sample, int64_t from, int64_t to, const float* z) {
    const float *const c = op.coef + 3 * sample, c0 = c[0], c1 = c[1], cz = c[2];
#pragma GCC ivdep
    for (int64_t i = from; i < to; ++i) {
      const float middle = c0 * op.x[i] + c1 * op.y[i], step = cz * z[i - from];
      plus[i] = middle + step;
      minus[i] = middle - step;
    }
  });
}

// A sum of n terms, by vectors and then in float64.
template <class Term>
double sum_of(int64_t n, const Term& term) {
  constexpr int together = 4 * lanes;
  double total = 0;
  for (int64_t start = 0; start < n; start += 64 * together) {
    float sums[together] = {};
    const int64_t stop = std::min(n, start + 64 * together);
    int64_t i = start;
    for (; i + together <= stop; i += together)
      for (int k = 0; k < together; ++k) sums[k] += term(i + k);
    for (int k = 0; i < stop; ++i, ++k) sums[k] += term(i);
    for (const float sum : sums) total += double(sum);
  }
  return total;
}

// The defect of a pair at one element.
FPFAST_FN float defect_at(float x, float plus, float minus, float c0, float c1) {
  return (x - (plus + minus) * 0.5f) * c1 + c0 * x;
}

void defect(const Probed& op, Part part, int threads) {
  const int64_t n = op.elements;
#pragma omp parallel for num_threads(threads) schedule(static) if (part.elements(op) >= serial_below)
  for (int64_t sample = part.start; sample < part.stop; ++sample) {
    const float c0 = op.coef[2 * sample], c1 = op.coef[2 * sample + 1];
    const float *const x = op.x + sample * n, *const plus = op.y + sample * n, *const minus = plus + op.samples * n;
    float* const out = op.out + sample * n;
    op.norms[sample] = float(sum_of(n, [=](int64_t i) __attribute__((always_inline)) {
      const float r = defect_at(x[i], plus[i], minus[i], c0, c1);
      out[i] = r;
      return r * r;
    }));
  }
}

void product(const Probed& op, Part part, int threads) {
  const int64_t n = op.elements, other = op.samples * n;
#pragma omp parallel for num_threads(threads) schedule(static) if (part.elements(op) >= serial_below)
  for (int64_t sample = part.start; sample < part.stop; ++sample) {
    const float c0 = op.coef[2 * sample], c1 = op.coef[2 * sample + 1];
    const float *const x = op.x + sample * n, *const y = op.y + sample * n, *const z = op.z + sample * n;
    op.out[sample] = float(sum_of(n, [=](int64_t i) __attribute__((always_inline)) {
      return defect_at(x[i], y[i], y[other + i], c0, c1) * defect_at(x[i], z[i], z[other + i], c0, c1);
    }));
  }
}

void probe_dot(const Probed& op, Part part, int threads) {
  std::fill(op.out + part.start, op.out + part.stop, 0.0f);
  over_probes(op, part, threads, [&](int64_t sample, int64_t from, int64_t to, const float* z) {
    const float* const x = op.x + from;
    op.out[sample] += float(sum_of(to - from, [=](int64_t i) __attribute__((always_inline)) { return x[i] * z[i]; }));
  });
}

void probe_times(const Probed& op, Part part, int threads) {
  over_probes(op, part, threads, [&](int64_t sample, int64_t from, int64_t to, const float* z) {
    for (int64_t i = from; i < to; ++i) op.out[i] = op.coef[sample] * z[i - from];
  });
}

}  // namespace
}  // namespace FPFAST_LEVEL
}  // namespace fpfast
