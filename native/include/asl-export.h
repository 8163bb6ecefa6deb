// ASL_API: what the library exports.

#pragma once

#ifdef _WIN32
#ifdef LLAMA_BUILD
#define ASL_API __declspec(dllexport)
#else
#define ASL_API __declspec(dllimport)
#endif
#else
#define ASL_API __attribute__((visibility("default")))
#endif
