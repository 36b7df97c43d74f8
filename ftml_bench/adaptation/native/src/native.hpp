// The meta-gradients of tasks, side by side on threads: each by one thread from first to last, and summed in their order,
// so that the bits do not depend on how many there are. Included once by a library for processors of one kind.
#pragma once
#include <atomic>
#include <cfenv>
#include <thread>
#include "loss.hpp"
#include "passes.hpp"

namespace {

// (outputs, inputs, taps) -> (taps, inputs, outputs); a vector as it is
template <class T> void put(const Parameter& p, const T* from, T* w) {
  const int inputs = std::max(p.inputs, 1);
  for (int o = 0; o < p.outputs; o++) for (int c = 0; c < inputs; c++) for (int t = 0; t < p.taps; t++)
    w[p.at + ((size_t)t * inputs + c) * p.stride + o] = *from++;
}

template <class T> void unpack(const Parameter& p, const T* from, T* to) {
  const int inputs = std::max(p.inputs, 1);
  for (int o = 0; o < p.outputs; o++) for (int c = 0; c < inputs; c++) for (int t = 0; t < p.taps; t++)
    *to++ = from[p.at + ((size_t)t * inputs + c) * p.stride + o];
}

template <class T> struct Worker {
  const Job& job;
  const Plan<T>& plan;
  const Layout<T>&steps, &query;
  const T* rates;  // of each step, as the weights lie
  Passes<T> passes;
  Loss<T> loss;
  int64_t S, Q, K;
  Buffer<T> x, tapes, kept, g, hv, gx;

  Worker(const Job& job, const Plan<T>& plan, const Layout<T>& steps, const Layout<T>& query, const T* rates)
      : job(job), plan(plan), steps(steps), query(query), rates(rates), passes(plan, steps, query, job.backward && job.second_order),
        loss(job, plan.out()), S(job.support), Q(job.query), K(job.steps) {
    x = Buffer<T>((S + Q) * plan.in.size());
    tapes = Buffer<T>(steps.size + query.size);
    if (!job.kept) kept = Buffer<T>(2 * plan.weights);
    g = Buffer<T>(plan.weights);
    hv = Buffer<T>(plan.weights);
    if (job.wants_x) gx = Buffer<T>(2 * (S + Q) * plan.in.size());
  }

  // where step k (or the query, k = K) keeps what it finds; of tasks that are not taped all steps in one place
  T* tape(int64_t task, int64_t k) {
    if (task < job.taped) return (T*)job.tapes[task] + k * steps.size;
    return k == K ? tapes + steps.size : tapes + 0;
  }
  // before step k; where no way back will ask for them, those before the step and after it in turns
  T* weights(int64_t task, int64_t k) {
    return job.kept ? (T*)job.kept + (task * (K + 1) + k) * plan.weights : kept + k % 2 * plan.weights;
  }
  const T* query_rows() const { return job.rides ? x : x + S * plan.in.size(); }
  int first() const { return job.rides ? S : Q; }

  // gradient: where a task's goes, in the weights and behind them in the rates
  void run(int64_t task, T* gradient) {
    take_rows((const T*)job.x + task * S * points(), S, x);
    take_rows((const T*)job.query_x + task * Q * points(), Q, x + S * plan.in.size());
    if (job.backward) backward(task, gradient); else forward(task);
  }

 private:
  size_t points() const { return (size_t)plan.in.h * plan.in.w * plan.in.c; }
  size_t rates_of(int64_t k) const { return std::min(k, job.nrates - 1) * plan.weights; }
  T* found_in(T* at) { return keeps_gradients(job) ? at + steps.weights : g + 0; }  // the gradient of a step

  void forward(int64_t task) {
    pack(task, weights(task, 0));
    for (int64_t k = 0; k < K; k++) {
      T* at = tape(task, k);
      const T* w = weights(task, k);
      T *next = weights(task, k + 1), *found = found_in(at);
      const T* r = rates + rates_of(k);
      step(task, at, w, found, k == 0 ? job.statistics : nullptr);
      std::copy(w, w + plan.weights, next);
      for (const Parameter& p : plan.parameters) if (p.adapted)
        for (size_t i = p.at; i < p.at + p.size(); i++) next[i] -= r[i] * clipped(found[i]);
    }
    if (job.adapted) return give_adapted(task, weights(task, K));
    T* at = tape(task, K);
    passes.forward(query, at, weights(task, K), query_rows(), first());
    if (K == 0) note_statistics(task, query, at, job.statistics);
    const Map& out = plan.out();
    const T* from = passes.outputs(query, at) + (job.rides ? S * out.size() : 0);
    T* to = (T*)job.outputs + task * Q * out.c;
    for (int64_t i = 0; i < Q; i++) for (int c = 0; c < out.c; c++) to[i * out.c + c] = from[i * out.stride + c];
  }

  // forward and backward of the support loss; found: where the gradient goes, or null; statistics: as in the job
  void step(int64_t task, T* at, const T* w, T* found, void* const* statistics = nullptr) {
    passes.forward(steps, at, w, x, S);
    note_statistics(task, steps, at, statistics);
    loss.gradient(task, passes.outputs(steps, at), S, at + steps.gradient.back(), at + steps.loss);
    passes.backward(steps, at, w, x, S, found, nullptr);
  }

  void note_statistics(int64_t task, const Layout<T>& pass, T* at, void* const* statistics) const {
    for (size_t l = 0, norm = 0; statistics && l < plan.ops.size(); l++) if (plan.ops[l].kind == NORM) {
      const Map& map = plan.ops[l].out;
      const NormKept<T> kept(at + pass.other[l], map.stride);
      T* to = (T*)statistics[norm++] + task * 2 * map.c;
      std::copy(kept.mean, kept.mean + map.c, to);
      std::copy(kept.sum_gh, kept.sum_gh + map.c, to + map.c);
    }
  }

  // v goes from the derivative at the last weights to that at the first
  void backward(int64_t task, T* v) {
    T* at = tape(task, K);
    const bool is_taped = task < job.taped;
    if (!is_taped) passes.forward(query, at, weights(task, K), query_rows(), first());
    take_cotangent(task, at);
    T *of_rows = job.wants_x ? (T*)gx : nullptr, *of_x = of_rows ? gx + (S + Q) * plan.in.size() : nullptr;
    passes.backward(query, at, weights(task, K), query_rows(), first(), v, of_rows);
    if (of_x) {
      const size_t rows = S * plan.in.size();
      if (job.rides) std::copy(of_rows, of_rows + rows, of_x); else std::fill(of_x, of_x + rows, T(0));
      give_rows(of_rows + (job.rides ? rows : 0), Q, (T*)job.gradient_query + task * Q * points());
    }
    T* of_rates = job.gradient_rates ? v + plan.weights : nullptr;
    if (of_rates) std::fill(of_rates, of_rates + job.nrates * plan.weights, T(0));
    for (int64_t k = K; (job.second_order || of_rates) && k-- > 0;) {
      const T *w = weights(task, k), *direction = g;
      at = tape(task, k);
      if (!is_taped) step(task, at, w, keeps_gradients(job) ? at + steps.weights : nullptr);
      if (of_rates) subtract_products(v, at + steps.weights, of_rates + rates_of(k));
      if (!job.second_order) continue;
      take_direction(v, job.clip > 0 ? at + steps.weights : nullptr, rates + rates_of(k));
      const T* t = passes.tangent(steps, at, w, direction, x);
      loss.tangent(task, passes.outputs(steps, at), t, S, at + steps.loss, passes.gradient_tangent());
      passes.tangent_backward(steps, at, w, direction, x, hv, of_rows);
      for (size_t i = 0; i < plan.weights; i++) v[i] -= hv[i];
      for (size_t i = 0; of_x && i < S * plan.in.size(); i++) of_x[i] -= of_rows[i];
    }
    if (of_x) give_rows(of_x, S, (T*)job.gradient_x + task * S * points());
  }

  T clipped(T g) const {
    const T c = job.clip;
    return c > 0 ? (g < -c ? -c : g > c ? c : g) : g;
  }

  // rate times v where weights are adapted and no gradient was cut
  void take_direction(const T* v, const T* found, const T* r) {
    std::fill(g + 0, g + plan.weights, T(0));
    for (const Parameter& p : plan.parameters) if (p.adapted)
      for (size_t i = p.at; i < p.at + p.size(); i++) g[i] = found && clipped(found[i]) != found[i] ? T(0) : r[i] * v[i];
  }

  void subtract_products(const T* v, const T* found, T* to) const {
    for (const Parameter& p : plan.parameters) if (p.adapted)
      for (size_t i = p.at; i < p.at + p.size(); i++) to[i] -= v[i] * clipped(found[i]);
  }

  void take_cotangent(int64_t task, T* at) {
    const Map& out = plan.out();
    T* to = at + query.gradient.back();
    const size_t before = job.rides ? S * out.size() : 0;
    std::fill(to, to + query.N * out.size(), T(0));
    const T* from = (const T*)job.cotangent + task * Q * out.c;
    for (int64_t i = 0; i < Q; i++) for (int c = 0; c < out.c; c++) to[before + i * out.stride + c] = from[i * out.c + c];
  }

  // (rows, C, H, W) -> (rows, H, W, C) and back
  void take_rows(const T* from, int64_t rows, T* to) {
    const Map& m = plan.in;
    const int places = m.h * m.w;
    for (int64_t i = 0; i < rows; i++, from += points()) for (int p = 0; p < places; p++, to += m.stride) {
      for (int c = 0; c < m.c; c++) to[c] = from[c * places + p];
      for (int c = m.c; c < m.stride; c++) to[c] = 0;
    }
  }
  void give_rows(const T* from, int64_t rows, T* to) {
    const Map& m = plan.in;
    const int places = m.h * m.w;
    for (int64_t i = 0; i < rows; i++, to += points()) for (int p = 0; p < places; p++, from += m.stride)
      for (int c = 0; c < m.c; c++) to[c * places + p] = from[c];
  }

  void give_adapted(int64_t task, const T* w) {
    for (size_t i = 0; i < plan.parameters.size(); i++) if (job.adapted[i]) {
      const Parameter& p = plan.parameters[i];
      unpack<T>(p, w, (T*)job.adapted[i] + task * p.outputs * std::max(p.inputs, 1) * p.taps);
    }
  }

  void pack(int64_t task, T* w) {
    std::fill(w, w + plan.weights, T(0));
    for (size_t i = 0; i < plan.parameters.size(); i++)
      put<T>(plan.parameters[i], (const T*)job.weights[i] + task * job.weight_steps[i], w);
  }
};

template <class T> struct Sizes {
  std::shared_ptr<const Plan<T>> plan;
  Layout<T> steps, query;
  explicit Sizes(const Job& job)
      : plan(plan_of<T>(job.input, job.nops, job.ops, job.reals, job.nparameters, job.shapes, job.wants_x)),
        steps(*plan, job.support, keeps_gradients(job)), query(*plan, job.query + (job.rides ? job.support : 0), false) {}
};

enum Outcome { WELL, NO_MEMORY, CALLBACK_FAILED };

template <class T> int run(const Job& job) {
  try {
    const Sizes<T> sizes(job);
    const Plan<T>& plan = *sizes.plan;
    const size_t numbers = plan.weights * (job.gradient_rates ? 1 + job.nrates : 1);  // of a task's gradient
    Buffer<T> gradients, rates(job.nrates * plan.weights);
    if (job.backward) gradients = Buffer<T>(job.tasks * numbers);
    std::fill(rates + 0, rates + job.nrates * plan.weights, T(0));
    const size_t nparameters = plan.parameters.size();
    for (size_t i = 0; i < job.nrates * nparameters; i++) if (job.rates[i])
      put<T>(plan.parameters[i % nparameters], (const T*)job.rates[i], rates + i / nparameters * plan.weights);
    std::atomic<int64_t> next{0};
    std::atomic<int> outcome{WELL};
    std::fenv_t environment;  // whether denormal numbers are flushed is each thread's own affair
    std::fegetenv(&environment);
    const auto work = [&] {
      try {
        std::fesetenv(&environment);
        Worker<T> worker(job, plan, sizes.steps, sizes.query, rates);
        for (int64_t task; outcome == WELL && (task = next++) < job.tasks;)
          worker.run(task, job.backward ? gradients + task * numbers : nullptr);
      } catch (const std::bad_alloc&) { outcome = NO_MEMORY; } catch (const CallbackFailed&) { outcome = CALLBACK_FAILED; }
    };
    std::vector<std::thread> threads;
    for (int64_t i = 1; i < std::min(job.threads, job.tasks); i++) threads.emplace_back(work);
    work();
    for (auto& thread : threads) thread.join();
    if (outcome != WELL || !job.backward) return outcome;
    Buffer<T> sum(numbers);
    for (size_t i = 0; i < numbers; i++) {
      double total = 0;
      for (int64_t t = 0; t < job.tasks; t++) total += gradients[t * numbers + i];
      sum[i] = total;
    }
    for (size_t i = 0; job.gradient_rates && i < job.nrates * nparameters; i++) if (job.gradient_rates[i])
      unpack<T>(plan.parameters[i % nparameters], sum + (1 + i / nparameters) * plan.weights, (T*)job.gradient_rates[i]);
    for (size_t i = 0; i < nparameters; i++) {
      T* to = (T*)job.gradients[i];
      if (!to) continue;
      if (!job.weight_steps[i]) unpack<T>(plan.parameters[i], sum, to);
      for (int64_t t = 0; job.weight_steps[i] && t < job.tasks; t++)
        unpack<T>(plan.parameters[i], gradients + t * numbers, to + t * job.weight_steps[i]);
    }
    return WELL;
  } catch (const std::bad_alloc&) { return NO_MEMORY; }
}

template <class T> void sizes(const Job& job, int64_t* found) {
  const Sizes<T> sizes(job);
  found[0] = sizes.plan->weights;
  found[1] = sizes.steps.size;
  found[2] = sizes.query.size;
}

}  // namespace

#define EXPORTED extern "C" __attribute__((visibility("default")))

EXPORTED int native_run(const Job* job, int is_double) { return is_double ? run<double>(*job) : run<float>(*job); }

// numbers that weights, the tape of a step and that of the query take
EXPORTED void native_sizes(const Job* job, int is_double, int64_t* found) {
  is_double ? sizes<double>(*job, found) : sizes<float>(*job, found);
}

// the most that this processor can do, by the names of the libraries
EXPORTED const char* native_best() {
#if defined(__x86_64__)
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("fma"))
    return "avx512";
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return "avx2";
#endif
  return "baseline";
}
