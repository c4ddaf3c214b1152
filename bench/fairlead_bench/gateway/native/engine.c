/* The mock engine: as cheap an OpenAI endpoint as can be, so that what is measured is what stands in front of it.

   engine PORTS     listens on so many free loopback ports and prints `ready PORT PORT ...`

   A POST is answered at once: plain with about 1 KB of JSON, or with a stream of `max_tokens` events when it asks for one.
   Each event carries the time at which it was written, so that a reader on the same machine knows how long it was under way.
   Commands on stdin, one a line: `interval MICROSECONDS` between the events of a stream (0: as fast as the reader takes them);
   `stats` prints the counters as one line of JSON. The end of stdin ends the process. */
#include "common.h"

enum { FDS = 1 << 16, EVENTS_AT_ONCE = 16, BATCH = 512 };

struct client {
  int fd;
  int at;          /* place in the heap of streams that wait for their time, -1 outside */
  bool streaming, usage, writing;
  int64_t due;
  long left;       /* events still to come */
  struct message m;
  struct bytes body, out;
};

static struct client *clients[FDS];
static bool listening[FDS];
static struct client *heap[FDS];
static int heap_size, poller, timer;
static int64_t interval_ns;
static struct { long connections, requests, streams, chunks, open, finished, aborted, bytes; } stats;
static char plain[2048], event[512];
static size_t plain_size, event_size, event_stamp;

static const char STREAM_HEAD[] =
    "HTTP/1.1 200 OK\r\nserver: mock\r\ncontent-type: text/event-stream; charset=utf-8\r\ntransfer-encoding: chunked\r\n\r\n";
#define EVENT_ID "data: {\"id\":\"chatcmpl-6f1d2c3b4a5968778695a4b3c2d1e0f1\",\"object\":\"chat.completion.chunk\"," \
                 "\"created\":1763600000,\"model\":\"bench-model\","

/* The heap of paced streams, earliest first. */

static void heap_put(int at, struct client *c) {
  heap[at] = c;
  c->at = at;
}

static void heap_up(int at, struct client *c) {
  for (; at > 0 && heap[(at - 1) / 2]->due > c->due; at = (at - 1) / 2) heap_put(at, heap[(at - 1) / 2]);
  heap_put(at, c);
}

static void heap_down(int at, struct client *c) {
  for (int child; (child = 2 * at + 1) < heap_size; at = child) {
    if (child + 1 < heap_size && heap[child + 1]->due < heap[child]->due) child++;
    if (heap[child]->due >= c->due) break;
    heap_put(at, heap[child]);
  }
  heap_put(at, c);
}

static void heap_remove(struct client *c) {
  if (c->at < 0) return;
  int at = c->at;
  c->at = -1;
  struct client *last = heap[--heap_size];
  if (last == c) return;
  heap_down(at, last);
  heap_up(last->at, last);
}

/* Connections. */

static void watch(struct client *c, bool writing) {
  if (c->writing == writing) return;
  c->writing = writing;
  struct epoll_event wanted = {.events = EPOLLIN | (writing ? EPOLLOUT : 0), .data.fd = c->fd};
  epoll_ctl(poller, EPOLL_CTL_MOD, c->fd, &wanted);
}

static void drop(struct client *c) {
  if (c->streaming) {
    stats.open--;
    stats.aborted++;
  }
  heap_remove(c);
  clients[c->fd] = NULL;
  close(c->fd);
  free(c->body.data);
  free(c->out.data);
  free(c);
}

static bool flush(struct client *c) {
  int sent = bytes_send(&c->out, c->fd);
  if (sent < 0) {
    drop(c);
    return false;
  }
  watch(c, sent == 0);
  return true;
}

/* Answers. */

static void put_stamp(char *at) {
  int64_t value = now_ns();
  for (int digit = STAMP_DIGITS - 1; digit >= 0; digit--, value /= 10) at[digit] = (char)('0' + value % 10);
}

static void add_chunk(struct bytes *out, const char *text) {
  char line[32];
  size_t size = strlen(text);
  bytes_add(out, line, (size_t)snprintf(line, sizeof line, "%zx\r\n", size));
  bytes_add(out, text, size);
  bytes_add(out, "\r\n", 2);
}

static void finish(struct client *c) {
  add_chunk(&c->out, EVENT_ID "\"choices\":[{\"index\":0,\"delta\":{},\"logprobs\":null,\"finish_reason\":\"length\"}]}\n\n");
  if (c->usage)
    add_chunk(&c->out, EVENT_ID "\"choices\":[],\"usage\":{\"prompt_tokens\":512,\"total_tokens\":640,"
                                "\"completion_tokens\":128,\"prompt_tokens_details\":{\"cached_tokens\":256}}}\n\n");
  add_chunk(&c->out, "data: [DONE]\n\n");
  bytes_add(&c->out, "0\r\n\r\n", 5);
  c->streaming = false;
  heap_remove(c);
  stats.open--;
  stats.finished++;
}

/* One event, written by itself as real engines do; false when the connection is gone. */
static bool send_event(struct client *c) {
  put_stamp(event + event_stamp);
  bytes_add(&c->out, event, event_size);
  stats.chunks++;
  if (--c->left == 0) finish(c);
  return flush(c);
}

static void send_burst(struct client *c) {
  for (int sent = 0; sent < EVENTS_AT_ONCE && c->streaming; sent++) {
    if (c->writing) return;
    if (!send_event(c)) return;
  }
  if (c->streaming) {
    c->due = now_ns();
    if (c->at < 0) heap_up(heap_size++, c);
  }
}

static bool asks(const struct bytes *body, const char *name) {
  size_t size = strlen(name);
  const char *found = memmem(body->data, body->size, name, size);
  if (found == NULL) return false;
  const char *end = body->data + body->size;
  for (found += size; found < end && (*found == ' ' || *found == ':'); found++) continue;
  return end - found >= 4 && memcmp(found, "true", 4) == 0;
}

static long tokens_wanted(const struct bytes *body) {
  static const char *names[] = {"\"max_tokens\"", "\"max_completion_tokens\""};
  for (int i = 0; i < 2; i++) {
    const char *found = memmem(body->data, body->size, names[i], strlen(names[i]));
    if (found != NULL) {
      found += strlen(names[i]);
      long value = strtol(found + strspn(found, ": "), NULL, 10);
      if (value > 0) return value;
    }
  }
  return 128;
}

static void answer_get(struct client *c) {
  const char *kind = "application/json", *text = "{\"status\":\"ok\"}";
  if (strncmp(c->m.head, "GET /v1/models", 14) == 0) {
    text = "{\"object\":\"list\",\"data\":[{\"id\":\"bench-model\",\"object\":\"model\",\"created\":1763600000,"
           "\"owned_by\":\"mock\",\"max_model_len\":131072}]}";
  } else if (strstr(c->m.head, "_info ") != NULL) {
    text = "{\"model_path\":\"bench-model\",\"served_model_name\":\"bench-model\",\"tokenizer_path\":\"\","
           "\"is_generation\":true,\"version\":\"0.0.0\"}";
  } else if (strncmp(c->m.head, "GET /metrics", 12) == 0) {
    kind = "text/plain; version=0.0.4";
    text = "vllm:num_requests_running{model_name=\"bench-model\"} 0.0\nvllm:num_requests_waiting{model_name=\"bench-model\"} 0.0\n"
           "vllm:kv_cache_usage_perc{model_name=\"bench-model\"} 0.0\n";
  }
  char head[256];
  int size = snprintf(head, sizeof head, "HTTP/1.1 200 OK\r\ncontent-type: %s\r\ncontent-length: %zu\r\n\r\n", kind, strlen(text));
  bytes_add(&c->out, head, (size_t)size);
  bytes_add(&c->out, text, strlen(text));
  flush(c);
}

static void answer(struct client *c) {
  if (strncmp(c->m.head, "POST ", 5) != 0) {
    answer_get(c);
    return;
  }
  bytes_add(&c->body, "", 1);
  stats.requests++;
  stats.bytes += (long)c->body.size - 1;
  if (!asks(&c->body, "\"stream\"")) {
    bytes_add(&c->out, plain, plain_size);
    flush(c);
    return;
  }
  c->streaming = true;
  c->usage = asks(&c->body, "\"include_usage\"");
  c->left = tokens_wanted(&c->body);
  stats.streams++;
  stats.open++;
  bytes_add(&c->out, STREAM_HEAD, sizeof STREAM_HEAD - 1);
  add_chunk(&c->out, EVENT_ID "\"choices\":[{\"index\":0,\"delta\":{\"role\":\"assistant\",\"content\":\"\"},"
                              "\"logprobs\":null,\"finish_reason\":null}]}\n\n");
  if (interval_ns == 0) {
    send_burst(c);
  } else if (send_event(c) && c->streaming) {
    c->due = now_ns() + interval_ns;
    heap_up(heap_size++, c);
  }
}

static void take_body(void *owner, const char *data, size_t size) {
  bytes_add(&((struct client *)owner)->body, data, size);
}

static void read_from(struct client *c) {
  static char buffer[READ_BYTES];
  int fd = c->fd;
  ssize_t got = recv(fd, buffer, sizeof buffer, 0);
  if (got < 0 && (errno == EAGAIN || errno == EINTR)) return;
  if (got <= 0) {
    drop(c);
    return;
  }
  for (ssize_t used = 0; used < got;) {
    ssize_t more = message_feed(&c->m, buffer + used, (size_t)(got - used), false, take_body, c);
    if (more < 0) {
      drop(c);
      return;
    }
    used += more;
    if (c->m.part != COMPLETE) return;
    answer(c);
    if (clients[fd] != c) return;
    c->body.size = c->body.from = 0;
    message_reset(&c->m);
  }
}

static void accept_all(int listener) {
  for (;;) {
    int fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
    if (fd < 0) return;
    struct client *c = fd < FDS ? calloc(1, sizeof *c) : NULL;
    if (c == NULL) die("too many connections");
    c->fd = fd;
    c->at = -1;
    clients[fd] = c;
    stats.connections++;
    no_delay(fd);
    struct epoll_event wanted = {.events = EPOLLIN, .data.fd = fd};
    epoll_ctl(poller, EPOLL_CTL_ADD, fd, &wanted);
  }
}

/* The loop. */

static void send_due(void) {
  for (int rounds = heap_size; rounds > 0 && heap_size > 0; rounds--) {
    struct client *c = heap[0];
    if (c->due > now_ns()) return;
    if (interval_ns == 0) {
      heap_remove(c);
      send_burst(c);
    } else {
      c->due += interval_ns;
      heap_down(0, c);
      send_event(c);
    }
  }
}

/* Sleep until the earliest stream's time; whether that has come already. */
static bool overdue(void) {
  if (heap_size == 0) return false;
  if (heap[0]->due <= now_ns()) return true;
  set_timer(timer, heap[0]->due);
  return false;
}

static void commands(void) {
  static char text[4096];
  static size_t size;
  ssize_t got = read(STDIN_FILENO, text + size, sizeof text - 1 - size);
  if (got <= 0) exit(0);
  size += (size_t)got;
  text[size] = 0;
  char *line = text;
  for (char *end; (end = strchr(line, '\n')) != NULL; line = end + 1) {
    *end = 0;
    long microseconds;
    if (sscanf(line, "interval %ld", &microseconds) == 1) {
      interval_ns = microseconds * 1000LL;
      puts("ok");
    } else if (strcmp(line, "stats") == 0) {
      printf("{\"connections\":%ld,\"requests\":%ld,\"streams\":%ld,\"chunks\":%ld,\"open\":%ld,\"finished\":%ld,"
             "\"aborted\":%ld,\"bytes\":%ld}\n",
             stats.connections, stats.requests, stats.streams, stats.chunks, stats.open, stats.finished, stats.aborted,
             stats.bytes);
    } else {
      puts("unknown");
    }
    fflush(stdout);
  }
  size = strlen(line);
  memmove(text, line, size + 1);
}

static void prepare_answers(void) {
  char words[820], body[1400];
  for (size_t i = 0; i < sizeof words - 1; i++) words[i] = "the quick fox "[i % 14];
  words[sizeof words - 1] = 0;
  int size = snprintf(body, sizeof body,
                      "{\"id\":\"chatcmpl-6f1d2c3b4a596877\",\"object\":\"chat.completion\",\"created\":1763600000,"
                      "\"model\":\"bench-model\",\"choices\":[{\"index\":0,\"message\":{\"role\":\"assistant\",\"content\":\"%s\"},"
                      "\"logprobs\":null,\"finish_reason\":\"stop\"}],\"usage\":{\"prompt_tokens\":512,\"total_tokens\":640,"
                      "\"completion_tokens\":128,\"prompt_tokens_details\":{\"cached_tokens\":256}}}",
                      words);
  plain_size = (size_t)snprintf(plain, sizeof plain,
                                "HTTP/1.1 200 OK\r\nserver: mock\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%s",
                                size, body);
  char text[480];
  int written = snprintf(text, sizeof text,
                         EVENT_ID "\"choices\":[{\"index\":0,\"delta\":{\"content\":\" " STAMP_MARK "%0*d;\"},\"logprobs\":null,"
                                  "\"finish_reason\":null}]}\n\n",
                         STAMP_DIGITS, 0);
  event_size = (size_t)snprintf(event, sizeof event, "%x\r\n%s\r\n", (unsigned)written, text);
  event_stamp = (size_t)(strstr(event, STAMP_MARK) - event) + strlen(STAMP_MARK);
}

static int listen_somewhere(void) {
  int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
  struct sockaddr_in address = loopback(0);
  socklen_t size = sizeof address;
  if (fd < 0 || fd >= FDS || bind(fd, (struct sockaddr *)&address, size) != 0 || listen(fd, 4096) != 0) die("cannot listen");
  getsockname(fd, (struct sockaddr *)&address, &size);
  printf(" %d", ntohs(address.sin_port));
  listening[fd] = true;
  return fd;
}

static void add(int fd) {
  struct epoll_event wanted = {.events = EPOLLIN, .data.fd = fd};
  if (epoll_ctl(poller, EPOLL_CTL_ADD, fd, &wanted) != 0) die("cannot watch a descriptor");
}

static void serve(const struct epoll_event *happened) {
  int fd = happened->data.fd;
  struct client *c = clients[fd];
  if (listening[fd]) {
    accept_all(fd);
  } else if (fd == STDIN_FILENO) {
    commands();
  } else if (fd == timer) {
    clear_timer(timer);
  } else if (c != NULL) {
    if (happened->events & EPOLLOUT) {
      if (!flush(c)) return;
      if (!c->writing && c->streaming && interval_ns == 0) send_burst(c);
      if (clients[fd] != c) return;
    }
    if (happened->events & (EPOLLIN | EPOLLHUP | EPOLLERR)) read_from(c);
  }
}

int main(int count, char **arguments) {
  if (count != 2) die("usage: engine PORTS");
  raise_file_limit();
  prepare_answers();
  poller = epoll_create1(EPOLL_CLOEXEC);
  timer = new_timer();
  add(STDIN_FILENO);
  add(timer);
  printf("ready");
  for (int i = atoi(arguments[1]); i > 0; i--) add(listen_somewhere());
  puts("");
  fflush(stdout);
  for (;;) {
    struct epoll_event happened[BATCH];
    int found = epoll_wait(poller, happened, BATCH, overdue() ? 0 : -1);
    if (found < 0 && errno != EINTR) die("waiting failed");
    for (int i = 0; i < found; i++) serve(&happened[i]);
    send_due();
  }
}
