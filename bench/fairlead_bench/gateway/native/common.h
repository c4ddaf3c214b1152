/* What the mock engine and the load generator share: time, sockets, byte buffers, and one reader for HTTP/1.1 messages. */
#ifndef COMMON_H
#define COMMON_H

#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>

enum { READ_BYTES = 128 * 1024, HEAD_BYTES = 8 * 1024, LINE_BYTES = 64, STAMP_DIGITS = 19 };
#define STAMP_MARK "~t"
#define SECOND 1000000000LL

static inline void die(const char *format, ...) {
  va_list rest;
  va_start(rest, format);
  vfprintf(stderr, format, rest);
  va_end(rest);
  fputc('\n', stderr);
  exit(1);
}

static inline int64_t now_ns(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return t.tv_sec * SECOND + t.tv_nsec;
}

/* A timer that an epoll loop can wait for, since epoll's own patience is counted in milliseconds. */
static inline int new_timer(void) {
  int timer = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC);
  if (timer < 0) die("no timer can be made");
  return timer;
}

static inline void set_timer(int timer, int64_t due) {
  struct itimerspec when = {.it_value = {.tv_sec = due / SECOND, .tv_nsec = due % SECOND}};
  timerfd_settime(timer, TFD_TIMER_ABSTIME, &when, NULL);
}

static inline void clear_timer(int timer) {
  uint64_t ticks;
  if (read(timer, &ticks, sizeof ticks) < 0 && errno != EAGAIN) die("the timer failed");
}

static inline void raise_file_limit(void) {
  struct rlimit limit;
  if (getrlimit(RLIMIT_NOFILE, &limit) == 0) {
    limit.rlim_cur = limit.rlim_max;
    setrlimit(RLIMIT_NOFILE, &limit);
  }
}

static inline struct sockaddr_in loopback(int port) {
  struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  return address;
}

static inline void no_delay(int fd) {
  int on = 1;
  setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
}

/* A growing run of bytes; `from` is how much of it has been used up. */
struct bytes {
  char *data;
  size_t size, room, from;
};

static inline void bytes_reserve(struct bytes *b, size_t more) {
  if (b->from == b->size) b->from = b->size = 0;
  if (b->size + more <= b->room) return;
  b->room = (b->size + more) * 2;
  b->data = realloc(b->data, b->room);
  if (b->data == NULL) die("out of memory");
}

static inline void bytes_add(struct bytes *b, const char *data, size_t size) {
  bytes_reserve(b, size);
  memcpy(b->data + b->size, data, size);
  b->size += size;
}

/* Write what is left of `b`. 1: all is out; 0: the socket is full; -1: the connection is gone. */
static inline int bytes_send(struct bytes *b, int fd) {
  while (b->from < b->size) {
    ssize_t sent = send(fd, b->data + b->from, b->size - b->from, MSG_NOSIGNAL);
    if (sent < 0) return errno == EAGAIN ? 0 : errno == EINTR ? 0 : -1;
    b->from += (size_t)sent;
  }
  b->from = b->size = 0;
  return 1;
}

/* One HTTP/1.1 message after another. Heads are collected, bodies are handed on as they come. */
enum part { HEAD, LENGTH, CHUNK_SIZE, CHUNK_DATA, CHUNK_END, TRAILER, UNTIL_CLOSE, COMPLETE };

struct message {
  enum part part;
  bool keep;       /* the sender keeps the connection open behind this message */
  int status;      /* of a response */
  int64_t left;    /* of the body or of the present chunk */
  size_t head_size, line_size;
  char head[HEAD_BYTES], line[LINE_BYTES];
};

typedef void body_taker(void *owner, const char *data, size_t size);

static inline void message_reset(struct message *m) {
  m->part = HEAD;
  m->head_size = m->line_size = 0;
}

/* The value of a header field of a whole head, or NULL; it ends at the next CR. */
static inline const char *message_field(const struct message *m, const char *name) {
  size_t size = strlen(name);
  for (const char *line = strchr(m->head, '\n'); line != NULL; line = strchr(line, '\n')) {
    line++;
    if (strncasecmp(line, name, size) == 0 && line[size] == ':') return line + size + 1 + strspn(line + size + 1, " ");
  }
  return NULL;
}

static inline bool message_headed(struct message *m, bool response) {
  m->status = 0;
  if (response && sscanf(m->head, "HTTP/1.%*d %d", &m->status) != 1) return false;
  const char *length = message_field(m, "content-length");
  const char *coding = message_field(m, "transfer-encoding");
  const char *connection = message_field(m, "connection");
  m->keep = connection == NULL || strncasecmp(connection, "close", 5) != 0;
  if (response && m->status < 200) {
    message_reset(m);
  } else if (coding != NULL && strncasecmp(coding, "chunked", 7) == 0) {
    m->part = CHUNK_SIZE;
  } else if (length != NULL) {
    m->left = atoll(length);
    m->part = m->left > 0 ? LENGTH : COMPLETE;
  } else {
    m->part = response && m->status != 204 && m->status != 304 ? UNTIL_CLOSE : COMPLETE;
  }
  if (m->part == UNTIL_CLOSE) m->keep = false;
  return true;
}

static inline size_t head_feed(struct message *m, const char *data, size_t size, bool response, bool *sound) {
  size_t used = 0;
  while (used < size && m->part == HEAD) {
    const char *end = memchr(data + used, '\n', size - used);
    size_t run = end == NULL ? size - used : (size_t)(end - data) + 1 - used;
    if (m->head_size + run >= HEAD_BYTES) {
      *sound = false;
      return used;
    }
    memcpy(m->head + m->head_size, data + used, run);
    m->head_size += run;
    used += run;
    if (m->head_size >= 4 && memcmp(m->head + m->head_size - 4, "\r\n\r\n", 4) == 0) {
      m->head[m->head_size] = 0;
      *sound = message_headed(m, response);
      if (!*sound) return used;
    }
  }
  return used;
}

/* A line of the chunked framing: a chunk's size, the end behind its data, a trailer. Of a long one the end is dropped. */
static inline size_t line_feed(struct message *m, const char *data, size_t size) {
  for (size_t used = 0; used < size; used++) {
    if (data[used] != '\n') {
      if (m->line_size + 1 < LINE_BYTES) m->line[m->line_size++] = data[used];
      continue;
    }
    m->line[m->line_size] = 0;
    bool empty = m->line_size == 0 || m->line[0] == '\r';
    m->line_size = 0;
    if (m->part == CHUNK_SIZE) {
      m->left = strtoll(m->line, NULL, 16);
      m->part = m->left > 0 ? CHUNK_DATA : TRAILER;
    } else if (m->part == CHUNK_END) {
      m->part = CHUNK_SIZE;
    } else if (empty) {
      m->part = COMPLETE;
    }
    return used + 1;
  }
  return size;
}

/* Read on until a message is complete or the bytes end. The number of bytes used, or -1 when this is not HTTP. */
static inline ssize_t message_feed(struct message *m, const char *data, size_t size, bool response, body_taker *taker,
                                   void *owner) {
  size_t used = 0;
  bool sound = true;
  while (used < size && m->part != COMPLETE && sound) {
    size_t rest = size - used;
    switch (m->part) {
      case HEAD:
        used += head_feed(m, data + used, rest, response, &sound);
        break;
      case LENGTH:
      case CHUNK_DATA:
        if ((int64_t)rest > m->left) rest = (size_t)m->left;
        taker(owner, data + used, rest);
        used += rest;
        m->left -= (int64_t)rest;
        if (m->left == 0) m->part = m->part == LENGTH ? COMPLETE : CHUNK_END;
        break;
      case UNTIL_CLOSE:
        taker(owner, data + used, rest);
        used += rest;
        break;
      default:
        used += line_feed(m, data + used, rest);
    }
  }
  return sound ? (ssize_t)used : -1;
}

#endif
