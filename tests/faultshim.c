/* Fails, or kills the process at, the n-th file operation below given folders: an LD_PRELOAD library for test_faults.py.
 *
 * Every wrapped call on a path below a root is counted in its class and noted in memory that is shared with the parent,
 * so that the notes outlive a SIGKILL. Nothing is counted before shim_arm is called.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

enum { META, DATA, READ, CLASSES };                                      /* what is counted together */
enum { COUNT, FAIL_ONCE, FAIL_ON, KILL_BEFORE, KILL_AFTER, SHORT_ON };   /* what happens at the n-th */
enum { MOST_NOTES = 8192, MOST_ROOTS = 4 };

struct note {
  int kind_class;
  char kind[12];
  char path[244];
  char from[244]; /* of a rename or a link */
};

struct shared {
  atomic_long counts[CLASSES];
  atomic_long fired; /* how often it did something; the note of the first is `at` */
  atomic_long at;
  atomic_long noted;
  struct note notes[MOST_NOTES];
};

static struct shared *shared;
static char roots[MOST_ROOTS][PATH_MAX];
static int root_count, armed, armed_class, armed_mode, armed_errno;
static long armed_n;
static __thread const char *from_name; /* what the operation under way renames or links */

struct shared *shim_shared(void) {
  if (!shared) {
    shared = mmap(NULL, sizeof *shared, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (shared == MAP_FAILED) shared = NULL;
  }
  return shared;
}

void shim_reset(void) {
  shim_shared();
  for (int i = 0; i < CLASSES; i++) shared->counts[i] = 0;
  shared->fired = shared->noted = 0;
  shared->at = -1;
}

void shim_add_root(const char *root) {
  snprintf(roots[root_count++], PATH_MAX, "%s", root);
}

void shim_arm(int kind_class, long n, int mode, int error) {
  armed_class = kind_class, armed_n = n, armed_mode = mode, armed_errno = error;
  armed = 1;
}

/* SQLite's own files do not count: losing them loses no byte (test_state.py shows what their faults do). */
static int is_below_root(const char *path) {
  if (strstr(path, "/home/state/")) return 0;
  for (int i = 0; i < root_count; i++) {
    size_t length = strlen(roots[i]);
    if (!strncmp(path, roots[i], length) && (path[length] == '/' || !path[length])) return 1;
  }
  return 0;
}

/* The path of a descriptor, or of a name relative to one; empty if it cannot be told. */
static void resolve(int dirfd, const char *name, char *out) {
  char link[64];
  ssize_t length = 0;
  out[0] = 0;
  if (name && name[0] == '/') {
    snprintf(out, PATH_MAX, "%s", name);
    return;
  }
  if (dirfd == AT_FDCWD) {
    if (!getcwd(out, PATH_MAX)) out[0] = 0;
    length = strlen(out);
  } else {
    snprintf(link, sizeof link, "/proc/self/fd/%d", dirfd);
    length = syscall(SYS_readlink, link, out, PATH_MAX - 1);
    if (length < 0) length = 0;
    out[length] = 0;
  }
  if (name && length) snprintf(out + length, PATH_MAX - length, "/%s", name);
}

static void die(void) {
  syscall(SYS_kill, syscall(SYS_getpid), SIGKILL);
  for (;;) pause();
}

/* Counts and notes an operation. Returns the mode that is due now, COUNT for none. */
static int due(int kind_class, const char *kind, int dirfd, const char *name) {
  char path[PATH_MAX];
  if (!armed) return COUNT;
  int before = errno;
  resolve(dirfd, name, path);
  if (!is_below_root(path)) {
    errno = before;
    return COUNT;
  }
  long n = atomic_fetch_add(&shared->counts[kind_class], 1) + 1;
  long place = atomic_fetch_add(&shared->noted, 1);
  if (place < MOST_NOTES) {
    struct note *note = &shared->notes[place];
    note->kind_class = kind_class;
    snprintf(note->kind, sizeof note->kind, "%s", kind);
    snprintf(note->path, sizeof note->path, "%.243s", path);
    snprintf(note->from, sizeof note->from, "%.243s", from_name ? from_name : "");
  }
  errno = before;
  int on = armed_mode == FAIL_ON || armed_mode == SHORT_ON;
  if (kind_class != armed_class || armed_mode == COUNT || n < armed_n || (n > armed_n && !on)) return COUNT;
  if (atomic_fetch_add(&shared->fired, 1) == 0) shared->at = place;
  if (armed_mode == KILL_BEFORE) die();
  return armed_mode == SHORT_ON && n > armed_n ? FAIL_ON : armed_mode;
}

#define REAL(type, name, ...)                                              \
  static type (*real)(__VA_ARGS__);                                        \
  if (!real) real = (type(*)(__VA_ARGS__))dlsym(RTLD_NEXT, #name)

/* Runs CALL between what is due before and after it. */
#define AROUND(type, failure, kind_class, kind, dirfd, name, call)         \
  int now = due(kind_class, kind, dirfd, name);                            \
  if (now == FAIL_ONCE || now == FAIL_ON) {                                \
    errno = armed_errno;                                                   \
    return failure;                                                        \
  }                                                                        \
  type result = (call);                                                    \
  if (now == KILL_AFTER) die();                                            \
  return result

static int is_writing(int flags) { return (flags & O_ACCMODE) != O_RDONLY || (flags & (O_CREAT | O_TRUNC)); }

#define OPEN(symbol)                                                                                  \
  int symbol(const char *path, int flags, ...) {                                                      \
    REAL(int, symbol, const char *, int, ...);                                                        \
    va_list rest;                                                                                     \
    va_start(rest, flags);                                                                            \
    int mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(rest, int) : 0;                                 \
    va_end(rest);                                                                                     \
    AROUND(int, -1, is_writing(flags) ? META : READ, "open", AT_FDCWD, path, real(path, flags, mode)); \
  }
OPEN(open)
OPEN(open64)

#define OPENAT(symbol)                                                                                \
  int symbol(int dirfd, const char *path, int flags, ...) {                                           \
    REAL(int, symbol, int, const char *, int, ...);                                                   \
    va_list rest;                                                                                     \
    va_start(rest, flags);                                                                            \
    int mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(rest, int) : 0;                                 \
    va_end(rest);                                                                                     \
    AROUND(int, -1, is_writing(flags) ? META : READ, "open", dirfd, path, real(dirfd, path, flags, mode)); \
  }
OPENAT(openat)
OPENAT(openat64)

#define FCNTL(symbol)                                                                                 \
  int symbol(int fd, int command, ...) {                                                              \
    REAL(int, symbol, int, int, ...);                                                                 \
    va_list rest;                                                                                     \
    va_start(rest, command);                                                                          \
    long argument = va_arg(rest, long);                                                               \
    va_end(rest);                                                                                     \
    if (command != F_DUPFD && command != F_DUPFD_CLOEXEC) return real(fd, command, argument);         \
    AROUND(int, -1, META, "dup", fd, NULL, real(fd, command, argument));                              \
  }
FCNTL(fcntl)
FCNTL(fcntl64)

#define ON_PATH(symbol, kind, dirfd, path, parameters, types, arguments)                              \
  int symbol parameters {                                                                             \
    REAL(int, symbol, types);                                                                         \
    AROUND(int, -1, META, kind, dirfd, path, real arguments);                                         \
  }
#define T(...) __VA_ARGS__
#define FROM_TO(symbol, kind, dirfd, parameters, types, arguments)                                    \
  int symbol parameters {                                                                             \
    REAL(int, symbol, types);                                                                         \
    from_name = from;                                                                                 \
    int now = due(META, kind, dirfd, to);                                                             \
    from_name = NULL;                                                                                 \
    if (now == FAIL_ONCE || now == FAIL_ON) {                                                         \
      errno = armed_errno;                                                                            \
      return -1;                                                                                      \
    }                                                                                                 \
    int result = real arguments;                                                                      \
    if (now == KILL_AFTER) die();                                                                     \
    return result;                                                                                    \
  }
FROM_TO(rename, "rename", AT_FDCWD, (const char *from, const char *to), T(const char *, const char *), (from, to))
FROM_TO(renameat, "rename", todir, (int fromdir, const char *from, int todir, const char *to),
        T(int, const char *, int, const char *), (fromdir, from, todir, to))
FROM_TO(renameat2, "rename", todir, (int fromdir, const char *from, int todir, const char *to, unsigned flags),
        T(int, const char *, int, const char *, unsigned), (fromdir, from, todir, to, flags))
FROM_TO(link, "link", AT_FDCWD, (const char *from, const char *to), T(const char *, const char *), (from, to))
FROM_TO(linkat, "link", todir, (int fromdir, const char *from, int todir, const char *to, int flags),
        T(int, const char *, int, const char *, int), (fromdir, from, todir, to, flags))
ON_PATH(symlink, "symlink", AT_FDCWD, to, (const char *from, const char *to), T(const char *, const char *), (from, to))
ON_PATH(unlink, "unlink", AT_FDCWD, path, (const char *path), T(const char *), (path))
ON_PATH(unlinkat, "unlink", dirfd, path, (int dirfd, const char *path, int flags), T(int, const char *, int),
        (dirfd, path, flags))
ON_PATH(mkdir, "mkdir", AT_FDCWD, path, (const char *path, mode_t mode), T(const char *, mode_t), (path, mode))
ON_PATH(mkdirat, "mkdir", dirfd, path, (int dirfd, const char *path, mode_t mode), T(int, const char *, mode_t),
        (dirfd, path, mode))
ON_PATH(rmdir, "rmdir", AT_FDCWD, path, (const char *path), T(const char *), (path))
ON_PATH(chmod, "chmod", AT_FDCWD, path, (const char *path, mode_t mode), T(const char *, mode_t), (path, mode))
ON_PATH(fchmodat, "chmod", dirfd, path, (int dirfd, const char *path, mode_t mode, int flags),
        T(int, const char *, mode_t, int), (dirfd, path, mode, flags))
ON_PATH(fchmod, "fchmod", fd, NULL, (int fd, mode_t mode), T(int, mode_t), (fd, mode))
ON_PATH(ftruncate, "ftruncate", fd, NULL, (int fd, off_t size), T(int, off_t), (fd, size))
ON_PATH(ftruncate64, "ftruncate", fd, NULL, (int fd, off64_t size), T(int, off64_t), (fd, size))
ON_PATH(fsync, "fsync", fd, NULL, (int fd), T(int), (fd))
ON_PATH(fdatasync, "fdatasync", fd, NULL, (int fd), T(int), (fd))
ON_PATH(flock, "flock", fd, NULL, (int fd, int operation), T(int, int), (fd, operation))

#define TRANSFER(symbol, kind_class, kind, parameters, types, whole, half)                            \
  ssize_t symbol parameters {                                                                         \
    REAL(ssize_t, symbol, types);                                                                     \
    int now = due(kind_class, kind, fd, NULL);                                                        \
    if (now == FAIL_ONCE || now == FAIL_ON) {                                                         \
      errno = armed_errno;                                                                            \
      return -1;                                                                                      \
    }                                                                                                 \
    ssize_t result = now == SHORT_ON ? real half : real whole;                                        \
    if (now == KILL_AFTER) die();                                                                     \
    return result;                                                                                    \
  }
TRANSFER(write, DATA, "write", (int fd, const void *data, size_t size), T(int, const void *, size_t), (fd, data, size),
         (fd, data, (size + 1) / 2))
TRANSFER(pwrite, DATA, "pwrite", (int fd, const void *data, size_t size, off_t at), T(int, const void *, size_t, off_t),
         (fd, data, size, at), (fd, data, (size + 1) / 2, at))
TRANSFER(pwrite64, DATA, "pwrite", (int fd, const void *data, size_t size, off64_t at),
         T(int, const void *, size_t, off64_t), (fd, data, size, at), (fd, data, (size + 1) / 2, at))
TRANSFER(writev, DATA, "writev", (int fd, const struct iovec *list, int count), T(int, const struct iovec *, int),
         (fd, list, count), (fd, list, (count + 1) / 2))
TRANSFER(read, READ, "read", (int fd, void *data, size_t size), T(int, void *, size_t), (fd, data, size),
         (fd, data, (size + 1) / 2))
TRANSFER(pread, READ, "pread", (int fd, void *data, size_t size, off_t at), T(int, void *, size_t, off_t),
         (fd, data, size, at), (fd, data, (size + 1) / 2, at))
TRANSFER(pread64, READ, "pread", (int fd, void *data, size_t size, off64_t at), T(int, void *, size_t, off64_t),
         (fd, data, size, at), (fd, data, (size + 1) / 2, at))
TRANSFER(preadv, READ, "preadv", (int fd, const struct iovec *list, int count, off_t at),
         T(int, const struct iovec *, int, off_t), (fd, list, count, at), (fd, list, count, at))
TRANSFER(preadv64, READ, "preadv", (int fd, const struct iovec *list, int count, off64_t at),
         T(int, const struct iovec *, int, off64_t), (fd, list, count, at), (fd, list, count, at))
TRANSFER(preadv2, READ, "preadv", (int fd, const struct iovec *list, int count, off_t at, int flags),
         T(int, const struct iovec *, int, off_t, int), (fd, list, count, at, flags), (fd, list, count, at, flags))
TRANSFER(preadv64v2, READ, "preadv", (int fd, const struct iovec *list, int count, off64_t at, int flags),
         T(int, const struct iovec *, int, off64_t, int), (fd, list, count, at, flags), (fd, list, count, at, flags))

DIR *opendir(const char *path) {
  REAL(DIR *, opendir, const char *);
  AROUND(DIR *, NULL, READ, "opendir", AT_FDCWD, path, real(path));
}
