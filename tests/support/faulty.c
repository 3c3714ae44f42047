// A stand-in for a disk that fails and for a machine that is killed: preloaded into a program, it counts the calls that
// change files below one folder (writes, syncs, renames, links, removals, new files and folders) and lets one of them
// fail, or stops before or after it, until somebody kills the program.
//
//   FAULTY_ROOT   the folder, as an absolute path without links
//   FAULTY_AT     number of the call, from 1; 0 only counts
//   FAULTY_HOW    an errno: that call fails with it; the same with a "+": all calls from then on, but removals;
//                 "before" or "after": stop there
//   FAULTY_TELL   descriptor that is told "stopped\n", or how many calls there were at the end
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <unistd.h>

static long count, at;
static int error, lasting, stop_before, stop_after, tell = -1;
static const char *root;
static size_t length;

static ssize_t (*real_write)(int, const void *, size_t);

__attribute__((constructor)) static void start(void) {
  const char *how = getenv("FAULTY_HOW"), *number = getenv("FAULTY_AT"), *to = getenv("FAULTY_TELL");
  real_write = dlsym(RTLD_NEXT, "write");
  root = getenv("FAULTY_ROOT");
  length = root ? strlen(root) : 0;
  at = number ? atol(number) : 0;
  tell = to ? atoi(to) : -1;
  if (how && !strcmp(how, "before")) stop_before = 1;
  else if (how && !strcmp(how, "after")) stop_after = 1;
  else if (how) {
    error = atoi(how);
    lasting = strchr(how, '+') != NULL;
  }
}

__attribute__((destructor)) static void finish(void) {
  char text[32];
  if (tell >= 0 && root) {
    int size = snprintf(text, sizeof text, "%ld\n", count);
    if (real_write(tell, text, size) < 0) return;
  }
}

static void stop(void) {
  if (real_write(tell, "stopped\n", 8) < 0) _exit(99);
  for (;;) pause();
}

static int below(const char *path) {
  char whole[PATH_MAX];
  if (!root || !path) return 0;
  if (path[0] != '/') {
    if (!getcwd(whole, sizeof whole / 2)) return 0;
    strcat(whole, "/");
    strncat(whole, path, sizeof whole / 2);
    path = whole;
  }
  return !strncmp(path, root, length) && (path[length] == '/' || path[length] == 0);
}

static int open_below(int descriptor) {
  char name[64], path[PATH_MAX];
  if (!root) return 0;
  snprintf(name, sizeof name, "/proc/self/fd/%d", descriptor);
  ssize_t size = readlink(name, path, sizeof path - 1);
  if (size < 0) return 0;
  path[size] = 0;
  return below(path);
}

// Whether the call fails; it may also stop here.
static int fails(int counted, int removal) {
  if (!counted) return 0;
  count++;
  if (at && count == at && stop_before) stop();
  if (error && at && (count == at || (lasting && count > at && !removal))) {
    errno = error;
    return 1;
  }
  return 0;
}

static void done(int counted) {
  int kept = errno;
  if (counted && at && count == at && stop_after) stop();
  errno = kept;
}

#define WRAP(type, name, parameters, arguments, counted, removal) \
  type name parameters { \
    static type(*real) parameters; \
    if (!real) real = dlsym(RTLD_NEXT, #name); \
    int here = (counted); \
    if (fails(here, removal)) return -1; \
    type result = real arguments; \
    done(here); \
    return result; \
  }

WRAP(ssize_t, write, (int to, const void *data, size_t size), (to, data, size), open_below(to), 0)
WRAP(ssize_t, sendfile, (int to, int from, off_t *offset, size_t size), (to, from, offset, size), open_below(to), 0)
WRAP(ssize_t, sendfile64, (int to, int from, off64_t *offset, size_t size), (to, from, offset, size), open_below(to), 0)
WRAP(ssize_t, copy_file_range, (int from, off64_t *a, int to, off64_t *b, size_t size, unsigned flags),
     (from, a, to, b, size, flags), open_below(to), 0)
WRAP(int, fsync, (int file), (file), open_below(file), 0)
WRAP(int, ftruncate, (int file, off_t size), (file, size), open_below(file), 0)
WRAP(int, ftruncate64, (int file, off64_t size), (file, size), open_below(file), 0)
WRAP(int, rename, (const char *from, const char *to), (from, to), below(to), 0)
WRAP(int, renameat, (int a, const char *from, int b, const char *to), (a, from, b, to), below(to), 0)
WRAP(int, renameat2, (int a, const char *from, int b, const char *to, unsigned flags), (a, from, b, to, flags), below(to), 0)
WRAP(int, link, (const char *from, const char *to), (from, to), below(to), 0)
WRAP(int, linkat, (int a, const char *from, int b, const char *to, int flags), (a, from, b, to, flags), below(to), 0)
WRAP(int, unlink, (const char *path), (path), below(path), 1)
WRAP(int, unlinkat, (int at_folder, const char *path, int flags), (at_folder, path, flags),
     at_folder == AT_FDCWD ? below(path) : open_below(at_folder), 1)
WRAP(int, rmdir, (const char *path), (path), below(path), 1)
WRAP(int, mkdir, (const char *path, mode_t mode), (path, mode), below(path), 0)
WRAP(int, chmod, (const char *path, mode_t mode), (path, mode), below(path), 0)

#define OPEN(name) \
  int name(const char *path, int flags, ...) { \
    static int (*real)(const char *, int, ...); \
    mode_t mode = 0; \
    if (!real) real = dlsym(RTLD_NEXT, #name); \
    if (flags & (O_CREAT | O_TMPFILE)) { \
      va_list more; \
      va_start(more, flags); \
      mode = va_arg(more, mode_t); \
      va_end(more); \
    } \
    int here = (flags & (O_CREAT | O_TRUNC)) && below(path); \
    if (fails(here, 0)) return -1; \
    int result = real(path, flags, mode); \
    done(here); \
    return result; \
  }

OPEN(open)
OPEN(open64)
