#ifndef __AVX512F__
#error "to be compiled for AVX-512"
#endif
#include "native.hpp"
