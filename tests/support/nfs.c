// A stand-in for NFS as Linux mounts it, preloaded into a program: flock is emulated by locks of byte ranges, which want a
// file that is open for writing, and two names cannot be exchanged. With NFS_LACKS a system call that other file systems
// refuse fails too: "symlink", or "exec", a mount with noexec.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <unistd.h>

static int lacks(const char *what) {
  const char *said = getenv("NFS_LACKS");
  return said && !strcmp(said, what);
}

int flock(int descriptor, int operation) {
  static int (*real)(int, int);
  if (!real) real = dlsym(RTLD_NEXT, "flock");
  if (operation & LOCK_EX && (fcntl(descriptor, F_GETFL) & O_ACCMODE) == O_RDONLY) {
    errno = EBADF;
    return -1;
  }
  return real(descriptor, operation);
}

int renameat2(int from, const char *old, int to, const char *new, unsigned flags) {
  if (flags) {
    errno = EINVAL;
    return -1;
  }
  return renameat(from, old, to, new);
}

int symlink(const char *target, const char *link) {
  static int (*real)(const char *, const char *);
  if (!real) real = dlsym(RTLD_NEXT, "symlink");
  if (lacks("symlink")) {
    errno = EPERM;
    return -1;
  }
  return real(target, link);
}

int access(const char *path, int mode) {
  static int (*real)(const char *, int);
  if (!real) real = dlsym(RTLD_NEXT, "access");
  if (mode & X_OK && lacks("exec")) {
    errno = EACCES;
    return -1;
  }
  return real(path, mode);
}
