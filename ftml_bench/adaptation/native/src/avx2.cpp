#ifndef __AVX2__
#error "to be compiled for AVX2"
#endif
#include "native.hpp"
