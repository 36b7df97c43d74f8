// Activations, pools, the soft-argmax and what moves numbers: forward, backward, and the tangents of both.
#pragma once
#include <limits>
#include "plan.hpp"

enum Function { F_RELU, F_LEAKY, F_TANH, F_SIGMOID, F_SILU, F_GELU, F_GELU_TANH, F_SOFTPLUS, F_ELU };

// f(x), f'(x) and f''(x); a, b: slope of LEAKY; beta, threshold of SOFTPLUS; scale, alpha of ELU
template <class T, int F> struct Values { T f, d, dd; };
template <class T, int F> static inline Values<T, F> values(T x, T a, T b) {
  if (F == F_RELU) return {x > 0 ? x : x != x ? x : T(0), x > 0 ? T(1) : T(0), 0};
  if (F == F_LEAKY) return {x > 0 ? x : a * x, x > 0 ? T(1) : a, 0};
  if (F == F_TANH) {
    const T t = std::tanh(x), d = 1 - t * t;
    return {t, d, -2 * t * d};
  }
  if (F == F_SIGMOID || F == F_SILU) {
    const T s = 1 / (1 + std::exp(-x)), d = s * (1 - s), dd = d * (1 - 2 * s);
    if (F == F_SIGMOID) return {s, d, dd};
    return {x * s, s + x * d, 2 * d + x * dd};
  }
  if (F == F_GELU) {
    const T cdf = (1 + std::erf(x * T(0.70710678118654752440))) / 2;
    const T pdf = T(0.39894228040143267794) * std::exp(-x * x / 2);
    return {x * cdf, cdf + x * pdf, (2 - x * x) * pdf};
  }
  if (F == F_GELU_TANH) {
    const T k = T(0.79788456080286535588), c = T(0.044715);
    const T t = std::tanh(k * (x + c * x * x * x)), u = k * (1 + 3 * c * x * x), uu = 6 * k * c * x, s = 1 - t * t;
    return {x * (1 + t) / 2, (1 + t + x * s * u) / 2, s * u + x * s * (uu - 2 * t * u * u) / 2};
  }
  if (F == F_SOFTPLUS) {
    if (a * x > b) return {x, 1, 0};
    const T s = 1 / (1 + std::exp(-a * x));
    return {std::log1p(std::exp(a * x)) / a, s, a * s * (1 - s)};
  }
  if (x > 0) return {a * x, a, 0};
  const T e = a * b * std::exp(x);
  return {a * b * std::expm1(x), e, e};
}

template <class Body> static inline void by_function(int function, Body body) {
  switch (function) {
    case F_RELU: body(std::integral_constant<int, F_RELU>()); break;
    case F_LEAKY: body(std::integral_constant<int, F_LEAKY>()); break;
    case F_TANH: body(std::integral_constant<int, F_TANH>()); break;
    case F_SIGMOID: body(std::integral_constant<int, F_SIGMOID>()); break;
    case F_SILU: body(std::integral_constant<int, F_SILU>()); break;
    case F_GELU: body(std::integral_constant<int, F_GELU>()); break;
    case F_GELU_TANH: body(std::integral_constant<int, F_GELU_TANH>()); break;
    case F_SOFTPLUS: body(std::integral_constant<int, F_SOFTPLUS>()); break;
    default: body(std::integral_constant<int, F_ELU>());
  }
}

template <class T> static void activate(const Op& op, const T* x, T* out, size_t m) {
  const T a = op.a, b = op.b;
  by_function(op.k[0], [&](auto F) { for (size_t i = 0; i < m; i++) out[i] = values<T, F>(x[i], a, b).f; });
}
// out = f'(x) g
template <class T> static void activate_linear(const Op& op, const T* x, const T* g, T* out, size_t m) {
  const T a = op.a, b = op.b;
  by_function(op.k[0], [&](auto F) { for (size_t i = 0; i < m; i++) out[i] = values<T, F>(x[i], a, b).d * g[i]; });
}
// out = f'(x) gt + f''(x) x' g
template <class T>
static void activate_tangent_backward(const Op& op, const T* x, const T* xt, const T* g, const T* gt, T* out, size_t m) {
  const T a = op.a, b = op.b;
  by_function(op.k[0], [&](auto F) {
    for (size_t i = 0; i < m; i++) {
      const auto v = values<T, F>(x[i], a, b);
      out[i] = v.d * gt[i];
      if (F != F_RELU && F != F_LEAKY) out[i] += v.dd * xt[i] * g[i];
    }
  });
}

// -- pools; `where`: for each output, its largest input's place within the map

template <class T> static void largest(const Op& op, const T* x, T* out, int32_t* where, int N) {
  const int s = op.out.stride;
  for (int i = 0; i < N; i++, x += op.in.size()) for (const Window& w : op.windows) {
    for (int c = 0; c < s; c++) {
      T most = -std::numeric_limits<T>::infinity();
      int32_t at = (w.y0 * op.in.w + w.x0) * s + c;
      for (int y = w.y0; y < w.y1; y++) for (int z = w.x0; z < w.x1; z++) {
        const int32_t o = (y * op.in.w + z) * s + c;
        if (x[o] > most || x[o] != x[o]) { most = x[o]; at = o; }
      }
      *out++ = most;
      *where++ = at;
    }
  }
}
template <class T> static void take(const Op& op, const T* x, const int32_t* where, T* out, int N) {
  for (int i = 0; i < N; i++, x += op.in.size())
    for (size_t o = 0; o < op.out.size(); o++) *out++ = x[*where++];
}
template <class T> static void put_back(const Op& op, const T* g, const int32_t* where, T* gx, int N) {
  std::fill(gx, gx + N * op.in.size(), T(0));
  for (int i = 0; i < N; i++, gx += op.in.size())
    for (size_t o = 0; o < op.out.size(); o++) gx[*where++] += *g++;
}
template <class T> static void means(const Op& op, const T* x, T* out, int N) {
  const int s = op.out.stride;
  for (int i = 0; i < N; i++, x += op.in.size()) for (const Window& w : op.windows) {
    std::fill(out, out + s, T(0));
    for (int y = w.y0; y < w.y1; y++) for (int z = w.x0; z < w.x1; z++)
      for (int c = 0; c < s; c++) out[c] += x[(y * op.in.w + z) * s + c];
    for (int c = 0; c < s; c++) *out++ *= (T)w.share;
  }
}
template <class T> static void spread(const Op& op, const T* g, T* gx, int N) {
  const int s = op.out.stride;
  std::fill(gx, gx + N * op.in.size(), T(0));
  for (int i = 0; i < N; i++, gx += op.in.size()) for (const Window& w : op.windows) {
    for (int y = w.y0; y < w.y1; y++) for (int z = w.x0; z < w.x1; z++)
      for (int c = 0; c < s; c++) gx[(y * op.in.w + z) * s + c] += g[c] * (T)w.share;
    g += s;
  }
}

// -- (H, W, C) to C * H * W features and back

template <class T> static void flatten(const Op& op, const T* x, T* out, int N) {
  const int places = op.in.h * op.in.w;
  for (int i = 0; i < N; i++, x += op.in.size(), out += op.out.size()) {
    for (int p = 0; p < places; p++) for (int c = 0; c < op.in.c; c++) out[c * places + p] = x[p * op.in.stride + c];
    std::fill(out + op.out.c, out + op.out.stride, T(0));
  }
}
template <class T> static void unflatten(const Op& op, const T* g, T* gx, int N) {
  const int places = op.in.h * op.in.w;
  for (int i = 0; i < N; i++, gx += op.in.size(), g += op.out.size()) for (int p = 0; p < places; p++) {
    for (int c = 0; c < op.in.c; c++) gx[p * op.in.stride + c] = g[c * places + p];
    std::fill(gx + p * op.in.stride + op.in.c, gx + (p + 1) * op.in.stride, T(0));
  }
}

// -- the mean place under a softmax p over each map: columns of all channels, then rows

template <class T> struct Argmax {
  const Op& op;
  int places;
  explicit Argmax(const Op& op) : op(op), places(op.in.h * op.in.w) {}
  T column(int i) const { return (T)(i % op.in.w) / op.in.w - T(0.5); }
  T row(int i) const { return (T)(i / op.in.w) / op.in.h - T(0.5); }
  T along(const T* g, int c, int i) const { return g[c] * column(i) + g[op.in.c + c] * row(i); }

  void forward(const T* x, T* out, T* p, int N) const {
    const int s = op.in.stride;
    for (int n = 0; n < N; n++, x += op.in.size(), p += op.in.size(), out += op.out.size()) {
      std::fill(out, out + op.out.stride, T(0));
      for (int c = 0; c < op.in.c; c++) {
        T most = x[c], sum = 0;
        for (int i = 0; i < places; i++) most = std::max(most, x[i * s + c]);
        for (int i = 0; i < places; i++) sum += p[i * s + c] = std::exp(x[i * s + c] - most);
        for (int i = 0; i < places; i++) {
          p[i * s + c] /= sum;
          out[c] += p[i * s + c] * column(i);
          out[op.in.c + c] += p[i * s + c] * row(i);
        }
      }
    }
  }
  void backward(const T* p, const T* g, T* gx, int N) const {
    const int s = op.in.stride;
    std::fill(gx, gx + N * op.in.size(), T(0));
    for (int n = 0; n < N; n++, gx += op.in.size(), p += op.in.size(), g += op.out.size())
      for (int c = 0; c < op.in.c; c++) {
        T mean = 0;
        for (int i = 0; i < places; i++) mean += p[i * s + c] * along(g, c, i);
        for (int i = 0; i < places; i++) gx[i * s + c] = p[i * s + c] * (along(g, c, i) - mean);
      }
  }
  void tangent(const T* p, const T* xt, T* outt, int N) const {
    const int s = op.in.stride;
    for (int n = 0; n < N; n++, xt += op.in.size(), p += op.in.size(), outt += op.out.size()) {
      std::fill(outt, outt + op.out.stride, T(0));
      for (int c = 0; c < op.in.c; c++) {
        T mean = 0;
        for (int i = 0; i < places; i++) mean += p[i * s + c] * xt[i * s + c];
        for (int i = 0; i < places; i++) {
          const T pt = p[i * s + c] * (xt[i * s + c] - mean);
          outt[c] += pt * column(i);
          outt[op.in.c + c] += pt * row(i);
        }
      }
    }
  }
  void tangent_backward(const T* p, const T* xt, const T* g, const T* gt, T* gxt, int N) const {
    const int s = op.in.stride;
    std::fill(gxt, gxt + N * op.in.size(), T(0));
    for (int n = 0; n < N; n++) {
      for (int c = 0; c < op.in.c; c++) {
        T mean_x = 0, mean = 0, mean_t = 0;
        for (int i = 0; i < places; i++) mean_x += p[i * s + c] * xt[i * s + c];
        for (int i = 0; i < places; i++) {
          const T q = p[i * s + c], qt = q * (xt[i * s + c] - mean_x), u = along(g, c, i);
          mean += q * u;
          mean_t += qt * u + q * along(gt, c, i);
        }
        for (int i = 0; i < places; i++) {
          const T q = p[i * s + c], qt = q * (xt[i * s + c] - mean_x);
          gxt[i * s + c] = qt * (along(g, c, i) - mean) + q * (along(gt, c, i) - mean_t);
        }
      }
      p += op.in.size(); xt += op.in.size(); g += op.out.size(); gt += op.out.size(); gxt += op.in.size();
    }
  }
};

// -- a vector behind every row

template <class T> static void append(const Op& op, const T* x, const T* vector, T* out, int N) {
  const int size = op.out.c - op.in.c;
  for (int i = 0; i < N; i++, out += op.out.size()) {
    for (int c = 0; c < op.in.c; c++) out[c] = x ? x[i * op.in.size() + c] : T(0);
    for (int c = 0; c < size; c++) out[op.in.c + c] = vector[c];
    std::fill(out + op.out.c, out + op.out.stride, T(0));
  }
}
template <class T> static void append_backward(const Op& op, const T* g, T* gx, T* gvector, int N) {
  const int size = op.out.c - op.in.c;
  for (int i = 0; i < N; i++, g += op.out.size()) {
    if (gx) {
      for (int c = 0; c < op.in.c; c++) gx[i * op.in.size() + c] = g[c];
      std::fill(gx + i * op.in.size() + op.in.c, gx + (i + 1) * op.in.size(), T(0));
    }
    for (int c = 0; gvector && c < size; c++) gvector[c] += g[op.in.c + c];
  }
}
