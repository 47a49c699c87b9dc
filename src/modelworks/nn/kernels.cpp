// What a training step does to every number besides multiplying matrices, each in one pass over memory.
//
// Plain C entry points on raw pointers, float32 or bfloat16 (suffix _f and _h), sums and functions always in float32.
// Built and called by native.py; the same mathematics in torch stands beside every caller.

#include <cstdint>
#include <cstring>
#include <vector>
#include <omp.h>

namespace {

using i64 = int64_t;
constexpr i64 SMALL = 1 << 14;  // numbers below which a second thread costs more than it brings

struct bf16 { uint16_t bits; };

inline float load(float x) { return x; }
inline float load(bf16 x) { uint32_t wide = uint32_t(x.bits) << 16; float out; memcpy(&out, &wide, 4); return out; }
inline void store(float& to, float x) { to = x; }
inline void store(bf16& to, float x) {  // round to nearest, ties to even; what is not a number stays so
  uint32_t bits; memcpy(&bits, &x, 4);
  uint32_t rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  to.bits = uint16_t(x != x ? 0x7fc0 : rounded);
}

// exp by 2^n * e^r, |r| <= ln(2) / 2, a polynomial of degree 6 (about one unit in the last place); no branches, so
// that loops over it become vector instructions.
inline float exponential(float x) {
  x = x < -87.0f ? -87.0f : x;
  x = x > 88.0f ? 88.0f : x;
  float n = __builtin_rintf(x * 1.44269504f);
  float r = x - n * 0.693359375f - n * -2.12194440e-4f;
  float p = 1.0f / 720;
  p = p * r + 1.0f / 120; p = p * r + 1.0f / 24; p = p * r + 1.0f / 6; p = p * r + 0.5f; p = p * r + 1.0f;
  p = p * r + 1.0f;
  int32_t power = (int32_t(n == n ? n : 0.0f) + 127) << 23;
  float scale; memcpy(&scale, &power, 4);
  return p * scale;
}
inline float sigmoid(float x) { return 1.0f / (1.0f + exponential(-x)); }

// GELU by tanh: x sigmoid(2 u), u = sqrt(2 / pi) (x + 0.044715 x^3), since (1 + tanh u) / 2 = sigmoid(2 u).
constexpr float TWICE = 1.5957691216f, CUBE = 0.044715f;
inline float gelu(float x) { return x * sigmoid(TWICE * (x + CUBE * x * x * x)); }
inline float gelu_slope(float x) {
  float s = sigmoid(TWICE * (x + CUBE * x * x * x));
  return s + x * s * (1.0f - s) * TWICE * (1.0f + 3.0f * CUBE * x * x);
}

template <class T>
void gelu_forward(const T* x, T* y, i64 n) {
#pragma omp parallel for simd schedule(static) if (n > SMALL)
  for (i64 i = 0; i < n; ++i) store(y[i], gelu(load(x[i])));
}

template <class T>
void gelu_backward(const T* grad, const T* x, T* to_x, i64 n) {
#pragma omp parallel for simd schedule(static) if (n > SMALL)
  for (i64 i = 0; i < n; ++i) store(to_x[i], load(grad[i]) * gelu_slope(load(x[i])));
}

// y = silu(gate) * up
template <class T>
void gated_forward(const T* gate, const T* up, T* y, i64 n) {
#pragma omp parallel for simd schedule(static) if (n > SMALL)
  for (i64 i = 0; i < n; ++i) {
    float g = load(gate[i]);
    store(y[i], g * sigmoid(g) * load(up[i]));
  }
}

template <class T>
void gated_backward(const T* grad, const T* gate, const T* up, T* to_gate, T* to_up, i64 n) {
#pragma omp parallel for simd schedule(static) if (n > SMALL)
  for (i64 i = 0; i < n; ++i) {
    float g = load(gate[i]), s = sigmoid(g), d = load(grad[i]);
    store(to_up[i], d * g * s);
    store(to_gate[i], d * load(up[i]) * (s + g * s * (1.0f - s)));
  }
}

// y = x / sqrt(mean(x^2) + eps) * weight over rows of d numbers; `scale` keeps the first factor of each row.
template <class T>
void rms_forward(const T* x, const T* weight, T* y, float* scale, i64 rows, i64 d, float eps) {
#pragma omp parallel for schedule(static) if (rows * d > SMALL)
  for (i64 r = 0; r < rows; ++r) {
    const T* in = x + r * d;
    T* out = y + r * d;
    float sum = 0;
#pragma omp simd reduction(+ : sum)
    for (i64 i = 0; i < d; ++i) { float v = load(in[i]); sum += v * v; }
    float s = 1.0f / __builtin_sqrtf(sum / d + eps);
    scale[r] = s;
#pragma omp simd
    for (i64 i = 0; i < d; ++i) store(out[i], load(in[i]) * s * load(weight[i]));
  }
}

// to_x = s (g w - x s mean(g w x s)); to_weight = sum over rows of g x s, each thread's share added in their order.
template <class T>
void rms_backward(const T* grad, const T* x, const T* weight, const float* scale, T* to_x, float* to_weight, i64 rows,
                  i64 d) {
  int threads = rows * d > SMALL ? omp_get_max_threads() : 1;
  std::vector<float> shares(size_t(threads) * d, 0.0f);
#pragma omp parallel num_threads(threads)
  {
    float* share = shares.data() + i64(omp_get_thread_num()) * d;
#pragma omp for schedule(static)
    for (i64 r = 0; r < rows; ++r) {
      const T *g = grad + r * d, *in = x + r * d;
      T* out = to_x + r * d;
      float s = scale[r], along = 0;
#pragma omp simd reduction(+ : along)
      for (i64 i = 0; i < d; ++i) {
        float normal = load(in[i]) * s, slope = load(g[i]);
        share[i] += slope * normal;
        along += slope * load(weight[i]) * normal;
      }
      along /= d;
#pragma omp simd
      for (i64 i = 0; i < d; ++i) store(out[i], s * (load(g[i]) * load(weight[i]) - load(in[i]) * s * along));
    }
  }
  memset(to_weight, 0, sizeof(float) * d);
  for (int t = 0; t < threads; ++t)
    for (i64 i = 0; i < d; ++i) to_weight[i] += shares[size_t(t) * d + i];
}

// y = (x - mean(x)) / sqrt(var(x) + eps) * weight + bias over rows of d numbers (bias may be null); `mean` and `scale`
// keep what a row was moved and multiplied by.
template <class T>
void layer_forward(const T* x, const T* weight, const T* bias, T* y, float* mean, float* scale, i64 rows, i64 d,
                   float eps) {
#pragma omp parallel for schedule(static) if (rows * d > SMALL)
  for (i64 r = 0; r < rows; ++r) {
    const T* in = x + r * d;
    T* out = y + r * d;
    float sum = 0, square = 0;
#pragma omp simd reduction(+ : sum)
    for (i64 i = 0; i < d; ++i) sum += load(in[i]);
    float m = sum / d;
#pragma omp simd reduction(+ : square)
    for (i64 i = 0; i < d; ++i) { float v = load(in[i]) - m; square += v * v; }
    float s = 1.0f / __builtin_sqrtf(square / d + eps);
    mean[r] = m;
    scale[r] = s;
    if (bias) {
#pragma omp simd
      for (i64 i = 0; i < d; ++i) store(out[i], (load(in[i]) - m) * s * load(weight[i]) + load(bias[i]));
    } else {
#pragma omp simd
      for (i64 i = 0; i < d; ++i) store(out[i], (load(in[i]) - m) * s * load(weight[i]));
    }
  }
}

// n = (x - mean) s: to_x = s (g w - mean(g w) - n mean(g w n)); to_weight sums g n, to_bias sums g (each [d]).
template <class T>
void layer_backward(const T* grad, const T* x, const T* weight, const float* mean, const float* scale, T* to_x,
                    float* to_weight, float* to_bias, i64 rows, i64 d) {
  int threads = rows * d > SMALL ? omp_get_max_threads() : 1;
  std::vector<float> shares(size_t(threads) * 2 * d, 0.0f);
#pragma omp parallel num_threads(threads)
  {
    float *share = shares.data() + i64(omp_get_thread_num()) * 2 * d, *other = share + d;
#pragma omp for schedule(static)
    for (i64 r = 0; r < rows; ++r) {
      const T *g = grad + r * d, *in = x + r * d;
      T* out = to_x + r * d;
      float m = mean[r], s = scale[r], along = 0, sum = 0;
#pragma omp simd reduction(+ : along, sum)
      for (i64 i = 0; i < d; ++i) {
        float normal = (load(in[i]) - m) * s, slope = load(g[i]), wide = slope * load(weight[i]);
        share[i] += slope * normal;
        other[i] += slope;
        along += wide * normal;
        sum += wide;
      }
      along /= d;
      sum /= d;
#pragma omp simd
      for (i64 i = 0; i < d; ++i)
        store(out[i], s * (load(g[i]) * load(weight[i]) - sum - (load(in[i]) - m) * s * along));
    }
  }
  memset(to_weight, 0, sizeof(float) * d);
  memset(to_bias, 0, sizeof(float) * d);
  for (int t = 0; t < threads; ++t)
    for (i64 i = 0; i < d; ++i) {
      to_weight[i] += shares[size_t(t) * 2 * d + i];
      to_bias[i] += shares[size_t(t) * 2 * d + d + i];
    }
}

// Pairs (i, i + half) of each head turned by the angle of its position: x [rows, heads, 2 half] with `stride` numbers
// from one row to the next; cos and sin [period, 2 half], sin's first half negative; a row's place is row % period.
template <class T>
void turn(const T* x, const float* cos, const float* sin, T* y, i64 rows, i64 heads, i64 half, i64 stride,
          i64 period) {
#pragma omp parallel for schedule(static) if (rows * heads * half > SMALL)
  for (i64 r = 0; r < rows; ++r) {
    const float *c = cos + (r % period) * 2 * half, *s = sin + (r % period) * 2 * half + half;
    for (i64 h = 0; h < heads; ++h) {
      const T* in = x + r * stride + h * 2 * half;
      T* out = y + (r * heads + h) * 2 * half;
#pragma omp simd
      for (i64 i = 0; i < half; ++i) {
        float a = load(in[i]), b = load(in[i + half]), sine = s[i];
        store(out[i], a * c[i] - b * sine);
        store(out[i + half], b * c[i] + a * sine);
      }
    }
  }
}

}  // namespace

#define BOTH(name, types, call)                      \
  void name##_f types(float) { call; }               \
  void name##_h types(bf16) { call; }

extern "C" {
#define T1(T) (const T* x, T* y, i64 n)
BOTH(gelu_forward, T1, gelu_forward(x, y, n))
#define T2(T) (const T* grad, const T* x, T* to_x, i64 n)
BOTH(gelu_backward, T2, gelu_backward(grad, x, to_x, n))
#define T3(T) (const T* gate, const T* up, T* y, i64 n)
BOTH(gated_forward, T3, gated_forward(gate, up, y, n))
#define T4(T) (const T* grad, const T* gate, const T* up, T* to_gate, T* to_up, i64 n)
BOTH(gated_backward, T4, gated_backward(grad, gate, up, to_gate, to_up, n))
#define T5(T) (const T* x, const T* weight, T* y, float* scale, i64 rows, i64 d, float eps)
BOTH(rms_forward, T5, rms_forward(x, weight, y, scale, rows, d, eps))
#define T6(T) (const T* grad, const T* x, const T* weight, const float* scale, T* to_x, float* to_weight, i64 rows, i64 d)
BOTH(rms_backward, T6, rms_backward(grad, x, weight, scale, to_x, to_weight, rows, d))
#define T8(T) (const T* x, const T* weight, const T* bias, T* y, float* mean, float* scale, i64 rows, i64 d, float eps)
BOTH(layer_forward, T8, layer_forward(x, weight, bias, y, mean, scale, rows, d, eps))
#define T9(T) (const T* grad, const T* x, const T* weight, const float* mean, const float* scale, T* to_x, float* to_weight, float* to_bias, i64 rows, i64 d)
BOTH(layer_backward, T9, layer_backward(grad, x, weight, mean, scale, to_x, to_weight, to_bias, rows, d))
#define T7(T) (const T* x, const float* cos, const float* sin, T* y, i64 rows, i64 heads, i64 half, i64 stride, i64 period)
BOTH(turn, T7, turn(x, cos, sin, y, rows, heads, half, stride, period))
}
