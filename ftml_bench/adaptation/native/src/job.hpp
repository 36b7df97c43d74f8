// What is asked for: the face of the library, filled in from Python (library.py has the same fields in the same order).
#pragma once
#include <cstdint>

enum LossKind { CROSS_ENTROPY, SQUARED_ERROR, CALLED_BACK };

// Gradient (what = 0) or Hessian times direction (what = 1) of the loss of a task, at outputs (rows, features); 0 if well
typedef int (*Callback)(int64_t task, int64_t what, const void* outputs, const void* direction, void* result);

struct Job {
  // the network
  const int64_t* input;  // height, width, channels
  int64_t nops;
  const int64_t* ops;    // OP_NUMBERS each
  const double* reals;   // 2 each
  int64_t nparameters;
  const int64_t* shapes; // PARAMETER_NUMBERS each
  int64_t wants_x;
  // the inner loop
  int64_t tasks, steps, support, query, rides;  // rides: support rows are the first of the query's pass, for norms
  int64_t second_order;
  double clip;           // 0: none
  int64_t wants_rates;   // whether a derivative in them will be asked for
  int64_t nrates;        // steps with rates of their own; the last goes on
  const void* const* rates;  // by step and parameter, of the parameter's shape; null where it is not adapted
  // the loss on the support sets
  int64_t loss;
  const void* targets;
  const void* class_weights;
  double smoothing;
  int64_t ignore, is_mean;
  Callback callback;
  // what is done
  int64_t backward, threads;       // backward: of a forward pass that has been, with the same memory
  const void* const* weights;      // by parameter, (tasks, ...) where weight_steps is not 0
  const int64_t* weight_steps;
  const void *x, *query_x;         // (tasks, rows, channels, height, width)
  void* outputs;                   // (tasks, query, features)
  const void* cotangent;           // of them
  void* kept;                      // weights before each step, and the last: (tasks, steps + 1, numbers)
  void* const* tapes;              // what passes keep, of each of the first `taped` tasks
  int64_t taped;
  void* const* gradients;          // by parameter; null where none is wanted; of all tasks together if weight_steps is 0
  void *gradient_x, *gradient_query;
  void* const* statistics;         // by norm layer: mean and variance, (tasks, 2, channels), of the first pass; or null
  void* const* gradient_rates;     // by step and parameter, of all tasks together; null if none is wanted
  void* const* adapted;            // by parameter: the weights after the last step, (tasks, ...); then no query; or null
};

// Whether passes of steps keep the gradients that they find: to tell what was cut, or for the derivative in the rates.
inline bool keeps_gradients(const Job& job) { return job.clip > 0 || job.wants_rates; }
