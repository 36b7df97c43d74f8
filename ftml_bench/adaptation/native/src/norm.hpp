// Batch norm with what may follow it (ReLU or leaky ReLU) in the same passes. With h = (x - mean) r, r = (var + eps)^-1/2:
//   z = gamma h + beta,  g_x = gamma r (g_z - sum(g_z) / m - h sum(g_z h) / m),  g_gamma = sum(g_z h),  g_beta = sum(g_z);
// tangents (of v: v') are the derivatives of these lines. Means are over the m places of the first images.
#pragma once
#include "plan.hpp"

enum Behind { NOTHING, RELU, LEAKY };

template <class T, int B> static inline vec<T> behind(vec<T> sign, vec<T> z, T slope) {
  if (B == NOTHING) return z;
  const vec<T> zero{};
  return sign <= zero ? (B == RELU ? zero : z * slope) : z;  // what is no number stays
}

// totals[s] (stride numbers each) = sums over m rows of what `term(offset, values)` puts into values[0..S)
template <class T, int S, class F> static void sums(size_t m, int stride, double* totals, F term) {
  constexpr int n = Vector<T>::lanes, at_once = 64;  // rows that are summed in T before the sum goes on in double
  for (int i = 0; i < S * stride; i++) totals[i] = 0;
  for (size_t from = 0; from < m; from += at_once) {
    const size_t to = std::min(m, from + at_once);
    for (int j = 0; j < stride; j += n) {
      vec<T> even[S] = {}, odd[S] = {}, values[S];
      size_t i = from;
      for (; i + 1 < to; i += 2) {
        term(i * stride + j, j, values);
        for (int s = 0; s < S; s++) even[s] += values[s];
        term((i + 1) * stride + j, j, values);
        for (int s = 0; s < S; s++) odd[s] += values[s];
      }
      if (i < to) {
        term(i * stride + j, j, values);
        for (int s = 0; s < S; s++) even[s] += values[s];
      }
      for (int s = 0; s < S; s++) {
        const vec<T> sum = even[s] + odd[s];
        for (int l = 0; l < n; l++) totals[s * stride + j + l] += (double)sum[l];
      }
    }
  }
}

template <class T, class F> static inline void rows_of(size_t from, size_t to, int stride, F f) {
  constexpr int n = Vector<T>::lanes;
  for (size_t i = from; i < to; i++) for (int j = 0; j < stride; j += n) f(i * stride + j, j);
}

// What a norm layer keeps of a pass, `stride` numbers each; until the backward pass the variance lies in sum_gh.
template <class T> struct NormKept {
  T *mean, *r, *sum_gh, *sum_g;
  NormKept(T* at, int stride) : mean(at), r(at + stride), sum_gh(at + 2 * stride), sum_g(at + 3 * stride) {}
};

// Calls f with op's kind of activation as a constant.
template <class F> static inline void by_behind(const Op& op, F f) {
  switch (op.k[0]) {
    case RELU: f(std::integral_constant<int, RELU>()); break;
    case LEAKY: f(std::integral_constant<int, LEAKY>()); break;
    default: f(std::integral_constant<int, NOTHING>());
  }
}

// N images, statistics of the first `first`; scratch: 8 * stride numbers, totals: 3 * stride.
template <class T> struct Norm {
  const Op& op;
  const T *gamma, *beta;  // null: none
  T* scratch;
  double* totals;
  int stride;
  size_t places;
  T slope;

  Norm(const Op& op, const Plan<T>& plan, const T* w, T* scratch, double* totals)
      : op(op), gamma(op.weight < 0 ? nullptr : w + plan.parameters[op.weight].at),
        beta(op.bias < 0 ? nullptr : w + plan.parameters[op.bias].at), scratch(scratch), totals(totals),
        stride(op.out.stride), places((size_t)op.out.h * op.out.w), slope((T)op.b) {}

  T gamma_of(int c) const { return gamma ? gamma[c] : T(1); }

  void forward(const T* x, T* out, NormKept<T> kept, int N, int first) const {
    const size_t m = places * first;
    sums<T, 1>(m, stride, totals, [&](size_t o, int, vec<T>* v) { v[0] = load(x + o); });
    for (int c = 0; c < stride; c++) kept.mean[c] = totals[c] / m;
    sums<T, 1>(m, stride, totals, [&](size_t o, int j, vec<T>* v) {
      const vec<T> d = load(x + o) - load(kept.mean + j);
      v[0] = d * d;
    });
    T *k = scratch, *b = scratch + stride;
    for (int c = 0; c < stride; c++) {
      kept.sum_gh[c] = totals[c] / m;
      kept.r[c] = 1 / std::sqrt(totals[c] / m + op.a);
      k[c] = kept.r[c] * gamma_of(c);
      b[c] = beta ? beta[c] : T(0);
    }
    by_behind(op, [&](auto B) {
      rows_of<T>(0, places * N, stride, [&](size_t o, int j) {
        const vec<T> z = (load(x + o) - load(kept.mean + j)) * load(k + j) + load(b + j);
        store(out + o, behind<T, B>(z, z, slope));
      });
    });
  }

  // g: the gradient in out, becomes that in z; gx: where that in x goes, or null; gw: where those in gamma, beta go, or null
  void backward(const T* x, const T* out, T* g, NormKept<T> kept, int N, int first, T* gx, T* ggamma, T* gbeta) const {
    const size_t m = places * first;
    by_behind(op, [&](auto B) {
      sums<T, 2>(places * N, stride, totals, [&](size_t o, int j, vec<T>* v) {
        const vec<T> z = behind<T, B>(load(out + o), load(g + o), slope);
        store(g + o, z);
        v[0] = z;
        v[1] = z * (load(x + o) - load(kept.mean + j));
      });
    });
    T *k = scratch, *by_d = scratch + stride, *rest = scratch + 2 * stride;
    for (int c = 0; c < stride; c++) {
      const double sum_g = totals[c], sum_gh = totals[stride + c] * kept.r[c];
      kept.sum_g[c] = sum_g; kept.sum_gh[c] = sum_gh;
      if (ggamma) ggamma[c] = sum_gh;
      if (gbeta) gbeta[c] = sum_g;
      k[c] = gamma_of(c) * kept.r[c];
      by_d[c] = -k[c] * sum_gh * kept.r[c] / m;
      rest[c] = -k[c] * sum_g / m;
    }
    if (!gx) return;
    rows_of<T>(0, m, stride, [&](size_t o, int j) {
      const vec<T> d = load(x + o) - load(kept.mean + j);
      store(gx + o, load(g + o) * load(k + j) + (d * load(by_d + j) + load(rest + j)));
    });
    rows_of<T>(m, places * N, stride, [&](size_t o, int j) { store(gx + o, load(g + o) * load(k + j)); });
  }

  // v: the direction, in the form of the weights; xt: x', becomes h'; ss: where mean(h x') goes
  void tangent(const T* x, const T* out, NormKept<T> kept, int N, const T* vgamma, const T* vbeta, T* xt, T* outt,
               T* ss) const {
    const size_t m = places * N;
    sums<T, 2>(m, stride, totals, [&](size_t o, int j, vec<T>* v) {
      v[0] = load(xt + o);
      v[1] = v[0] * (load(x + o) - load(kept.mean + j));
    });
    T *mean = scratch, *by_d = scratch + stride, *g = scratch + 2 * stride, *vg = scratch + 3 * stride,
      *vb = scratch + 4 * stride;
    for (int c = 0; c < stride; c++) {
      ss[c] = totals[stride + c] * kept.r[c] / m;
      mean[c] = totals[c] / m;
      by_d[c] = kept.r[c] * kept.r[c] * ss[c];
      g[c] = gamma_of(c);
      vg[c] = vgamma ? vgamma[c] * kept.r[c] : T(0);
      vb[c] = vbeta ? vbeta[c] : T(0);
    }
    by_behind(op, [&](auto B) {
      rows_of<T>(0, m, stride, [&](size_t o, int j) {
        const vec<T> d = load(x + o) - load(kept.mean + j);
        const vec<T> h = (load(xt + o) - load(mean + j)) * load(kept.r + j) - d * load(by_d + j);
        store(xt + o, h);
        const vec<T> z = h * load(g + j) + (d * load(vg + j) + load(vb + j));
        store(outt + o, behind<T, B>(load(out + o), z, slope));
      });
    });
  }

  // g: the gradient in z; ht: h'; gt: the tangent of the gradient in out, becomes that in x
  void tangent_backward(const T* x, const T* out, const T* g, NormKept<T> kept, int N, const T* vgamma, const T* ht,
                        const T* ss, T* gt, T* ggamma, T* gbeta) const {
    const size_t m = places * N;
    by_behind(op, [&](auto B) {
      sums<T, 3>(m, stride, totals, [&](size_t o, int j, vec<T>* v) {
        const vec<T> z = behind<T, B>(load(out + o), load(gt + o), slope);
        store(gt + o, z);
        v[0] = z;
        v[1] = z * (load(x + o) - load(kept.mean + j));
        v[2] = load(g + o) * load(ht + o);
      });
    });
    T *by_g = scratch, *by_d = scratch + stride, *by_gt = scratch + 2 * stride, *by_ht = scratch + 3 * stride,
      *rest = scratch + 4 * stride;
    for (int c = 0; c < stride; c++) {
      const T r = kept.r[c], gam = gamma_of(c);
      const T sum_gt = totals[c], sum_ght = totals[stride + c] * r + totals[2 * stride + c];
      if (ggamma) ggamma[c] = sum_ght;
      if (gbeta) gbeta[c] = sum_gt;
      by_g[c] = (vgamma ? vgamma[c] * r : T(0)) - gam * r * r * ss[c];
      by_gt[c] = gam * r;
      by_ht[c] = -by_gt[c] * kept.sum_gh[c] / m;
      by_d[c] = -(by_g[c] * kept.sum_gh[c] + by_gt[c] * sum_ght) / m * r;
      rest[c] = -(by_g[c] * kept.sum_g[c] + by_gt[c] * sum_gt) / m;
    }
    rows_of<T>(0, m, stride, [&](size_t o, int j) {
      const vec<T> d = load(x + o) - load(kept.mean + j);
      store(gt + o, load(gt + o) * load(by_gt + j) + load(g + o) * load(by_g + j) + load(ht + o) * load(by_ht + j) +
                        d * load(by_d + j) + load(rest + j));
    });
  }
};
