// One line on standard error, and the end of the program.
#ifndef FAIL_H
#define FAIL_H

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

// What a library says may have many lines; only the first of the message is printed.
__attribute__((format(printf, 1, 2), noreturn)) static inline void fail(const char* format, ...) {
  char message[1024];
  va_list values;
  va_start(values, format);
  vsnprintf(message, sizeof message, format, values);
  va_end(values);
  message[strcspn(message, "\r\n")] = '\0';
  fprintf(stderr, "detect: %s\n", message);
  exit(1);
}

// Memory for `count` things of `size` bytes, zeros.
static inline void* allocate(size_t count, size_t size) {
  void* memory = calloc(count ? count : 1, size);
  if (memory == NULL) {
    fail("out of memory");
  }
  return memory;
}

#endif
