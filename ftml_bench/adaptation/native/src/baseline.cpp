// For every processor of its architecture.
#include "native.hpp"
