#include "asl-serve.h"
