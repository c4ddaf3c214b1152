/* The load generator: one thread, many connections, every answer read to its end and checked.

   load MODE --port N --bodies FILE --connections N --seconds S [more options below]

   MODE  closed  every connection sends its next request as soon as the last one is answered
         open    requests fall due at a seeded random rate, whatever the answers do; delays count from when they were due
         hold    every connection holds one long stream open; measuring begins when all have had an event
         abort   every connection leaves in the middle of its stream and comes back

   FILE holds one JSON body a line; a run of 16 `#` in it is replaced by a number that no other request has.
   Prints `begin` and `end` around the measured time, then what was measured as one line of JSON. */
#include "common.h"

#include <getopt.h>
#include <math.h>

enum { MARK_SIZE = sizeof STAMP_MARK - 1, TAIL = 32, BATCH = 512, PLAIN_LEAST = 512 };
static const int64_t OPENING_PATIENCE = 30 * SECOND, FINISHING_PATIENCE = 2 * SECOND;

enum mode { CLOSED, OPEN, HOLD, ABORT };

struct series { int64_t *values; size_t size, room; };

struct connection {
  int fd;          /* -1: closed */
  bool busy, writing, counted, fresh;
  int64_t due, first, leave;
  long events;
  size_t body_size, tail_size;
  int matched;     /* of a stamp: the mark, then its digits */
  int64_t stamp;
  char tail[TAIL];
  struct message m;
  struct bytes out;
};

static struct {
  enum mode mode;
  int port, connections;
  long events;
  double rate, seconds, warmup, spread, leave_within;
  uint64_t seed;
  const char *bodies, *token;
} wanted = {.connections = 1, .seconds = 3, .warmup = 0.5, .leave_within = 0.05, .seed = 1, .token = "bench"};

static struct { char *text; size_t size; char *unique; } *messages;
static long message_count, sent_count;
static struct connection *connections;
static int *idle, idle_count, poller, timer;
static struct { int64_t *due; size_t size, room, from; } waiting; /* open: due, and no connection free */
static struct series delays, first_events, under_way;
static struct { long requests, errors, wrong, reopened, events, aborts, aborts_measured, unfinished, status; } counted;
static bool measuring, stopping;
static int opened;
static uint64_t random_state;

static double random_share(void) {
  random_state ^= random_state >> 12;
  random_state ^= random_state << 25;
  random_state ^= random_state >> 27;
  return (double)((random_state * 2685821657736338717ULL) >> 11) / 9007199254740992.0;
}

static void note(struct series *s, int64_t value) {
  if (s->size == s->room) {
    s->room = s->room ? s->room * 2 : 1 << 16;
    s->values = realloc(s->values, s->room * sizeof *s->values);
    if (s->values == NULL) die("out of memory");
  }
  s->values[s->size++] = value;
}

/* What is sent. */

static void load_bodies(void) {
  FILE *file = fopen(wanted.bodies, "r");
  if (file == NULL) die("cannot open %s", wanted.bodies);
  char *line = NULL;
  size_t room = 0;
  ssize_t size;
  while ((size = getline(&line, &room, file)) > 0) {
    if (line[size - 1] == '\n') size--;
    struct bytes whole = {0};
    char head[1024];
    int head_size = snprintf(head, sizeof head,
                             "POST /v1/chat/completions HTTP/1.1\r\nhost: 127.0.0.1:%d\r\nauthorization: Bearer %s\r\n"
                             "accept: application/json\r\nuser-agent: OpenAI/Python 2.14.0\r\ncontent-type: application/json\r\n"
                             "content-length: %zd\r\n\r\n",
                             wanted.port, wanted.token, size);
    bytes_add(&whole, head, (size_t)head_size);
    bytes_add(&whole, line, (size_t)size);
    messages = realloc(messages, (size_t)(message_count + 1) * sizeof *messages);
    messages[message_count].text = whole.data;
    messages[message_count].size = whole.size;
    messages[message_count++].unique = memmem(whole.data, whole.size, "################", 16);
  }
  free(line);
  fclose(file);
  if (message_count == 0) die("%s holds no body", wanted.bodies);
}

static void add_message(struct connection *c) {
  long number = (long)(random_share() * (double)message_count);
  if (messages[number].unique != NULL) {
    char unique[17];
    snprintf(unique, sizeof unique, "%016lx", (unsigned long)(wanted.seed << 40) + (unsigned long)sent_count);
    memcpy(messages[number].unique, unique, 16);
  }
  sent_count++;
  bytes_add(&c->out, messages[number].text, messages[number].size);
}

static void watch(struct connection *c, bool writing, bool fresh) {
  if (!fresh && c->writing == writing) return;
  c->writing = writing;
  struct epoll_event events = {.events = EPOLLIN | (writing ? EPOLLOUT : 0), .data.ptr = c};
  if (epoll_ctl(poller, fresh ? EPOLL_CTL_ADD : EPOLL_CTL_MOD, c->fd, &events) != 0) die("cannot watch a connection");
}

static bool open_connection(struct connection *c) {
  struct sockaddr_in address = loopback(wanted.port);
  c->fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  if (c->fd < 0) die("no socket: %s", strerror(errno));
  if (connect(c->fd, (struct sockaddr *)&address, sizeof address) != 0) {
    close(c->fd);
    c->fd = -1;
    return false;
  }
  fcntl(c->fd, F_SETFL, O_NONBLOCK);
  no_delay(c->fd);
  c->out.size = c->out.from = 0;
  watch(c, false, true);
  return true;
}

static void close_connection(struct connection *c) {
  if (c->fd >= 0) close(c->fd);
  c->fd = -1;
  c->writing = false;
}

static void ended(struct connection *c, bool well);

static void push(struct connection *c) {
  int out = bytes_send(&c->out, c->fd);
  if (out < 0) ended(c, false);
  else watch(c, out == 0, false);
}

static void send_request(struct connection *c, int64_t due) {
  c->busy = true;
  c->counted = measuring;
  c->due = due;
  c->first = c->leave = 0;
  c->events = 0;
  c->body_size = c->tail_size = 0;
  c->matched = 0;
  message_reset(&c->m);
  c->fresh = c->fd < 0;
  if (c->fresh && !open_connection(c)) {
    ended(c, false);
    return;
  }
  add_message(c);
  push(c);
}

/* What comes back. */

static void saw_event(struct connection *c, int64_t stamp) {
  int64_t now = now_ns();
  c->events++;
  if (c->first == 0) {
    c->first = now;
    if (wanted.mode == HOLD) opened++;
    if (wanted.mode == ABORT) c->leave = now + (int64_t)(random_share() * wanted.leave_within * (double)SECOND);
    if (c->counted) note(&first_events, now - c->due);
  }
  if (measuring) {
    counted.events++;
    note(&under_way, now - stamp);
  }
}

static void take_body(void *owner, const char *data, size_t size) {
  struct connection *c = owner;
  c->body_size += size;
  if (size >= TAIL) {
    memcpy(c->tail, data + size - TAIL, TAIL);
    c->tail_size = TAIL;
  } else {
    size_t kept = c->tail_size + size > TAIL ? TAIL - size : c->tail_size;
    memmove(c->tail, c->tail + c->tail_size - kept, kept);
    memcpy(c->tail + kept, data, size);
    c->tail_size = kept + size;
  }
  for (size_t at = 0; at < size; at++) {
    if (c->matched == 0) {
      const char *found = memchr(data + at, STAMP_MARK[0], size - at);
      if (found == NULL) return;
      at = (size_t)(found - data);
      c->matched = 1;
      c->stamp = 0;
    } else if (c->matched < MARK_SIZE) {
      c->matched = data[at] == STAMP_MARK[c->matched] ? c->matched + 1 : 0;
    } else if (data[at] < '0' || data[at] > '9') {
      c->matched = 0;
    } else {
      c->stamp = c->stamp * 10 + (data[at] - '0');
      if (++c->matched == MARK_SIZE + STAMP_DIGITS) {
        c->matched = 0;
        saw_event(c, c->stamp);
      }
    }
  }
}

static bool as_asked(const struct connection *c) {
  if (c->m.status != 200) return false;
  if (wanted.events == 0) return c->body_size >= PLAIN_LEAST && c->tail[c->tail_size - 1] == '}';
  return c->events == wanted.events && memmem(c->tail, c->tail_size, "[DONE]", 6) != NULL;
}

static void next(struct connection *c) {
  if (stopping || wanted.mode == HOLD) return;
  if (wanted.mode != OPEN) {
    send_request(c, now_ns());
  } else if (waiting.from < waiting.size) {
    send_request(c, waiting.due[waiting.from++]);
  } else {
    idle[idle_count++] = (int)(c - connections);
  }
}

static void ended(struct connection *c, bool well) {
  if (well && !as_asked(c)) {
    counted.wrong++;
    if (c->m.status != 200) counted.status = c->m.status;
  }
  if (!well) counted.errors++;
  if (well && measuring) counted.requests++;
  if (well && (wanted.mode == OPEN ? c->counted : measuring)) note(&delays, now_ns() - c->due);
  c->busy = false;
  if (!well || !c->m.keep) {
    close_connection(c);
    if (well && measuring) counted.reopened++;
  }
  /* A refusing target must not turn this into a recursion without end. */
  if (!well && c->fresh && counted.errors > 1000) die("the target refuses: %ld errors", counted.errors);
  next(c);
}

static void read_from(struct connection *c) {
  static char buffer[READ_BYTES];
  ssize_t got = recv(c->fd, buffer, sizeof buffer, 0);
  if (got < 0 && (errno == EAGAIN || errno == EINTR)) return;
  if (!c->busy) {
    close_connection(c); /* an idle connection was closed, as servers may */
    if (measuring) counted.reopened++;
    return;
  }
  if (got <= 0) {
    ended(c, got == 0 && c->m.part == UNTIL_CLOSE);
    return;
  }
  ssize_t used = message_feed(&c->m, buffer, (size_t)got, true, take_body, c);
  if (used < 0) ended(c, false);
  else if (c->m.part == COMPLETE) ended(c, true);
}

/* When things happen. */

static int64_t next_arrival;

static void arrive(int64_t now) {
  for (; next_arrival <= now; next_arrival += (int64_t)(-log(1 - random_share()) / wanted.rate * (double)SECOND)) {
    if (idle_count > 0) {
      send_request(&connections[idle[--idle_count]], next_arrival);
      continue;
    }
    if (waiting.size == waiting.room) {
      waiting.room = waiting.room ? waiting.room * 2 : 4096;
      waiting.due = realloc(waiting.due, waiting.room * sizeof *waiting.due);
    }
    waiting.due[waiting.size++] = next_arrival;
  }
}

static void leave(int64_t now) {
  for (int i = 0; i < wanted.connections; i++) {
    struct connection *c = &connections[i];
    if (!c->busy || c->leave == 0 || c->leave > now) continue;
    close_connection(c);
    c->busy = false;
    counted.aborts++;
    counted.aborts_measured += measuring;
    next(c);
  }
}

/* Run the loop until `end`, or with `until_open` until every stream has had an event. */
static void run(int64_t start, int64_t end, bool until_open) {
  static int begun;
  for (int64_t now = now_ns(); now < end; now = now_ns()) {
    if (until_open && opened >= wanted.connections) return;
    if (wanted.mode != OPEN && begun < wanted.connections) {
      double share = wanted.spread > 0 ? (double)(now - start) / (wanted.spread * (double)SECOND) : 1;
      while (begun < wanted.connections && begun < share * wanted.connections) send_request(&connections[begun++], now_ns());
    }
    if (wanted.mode == OPEN && !stopping) arrive(now);
    if (wanted.mode == ABORT) leave(now);
    int64_t wake = now + SECOND / 1000;
    if (wanted.mode == OPEN) wake = stopping ? end : next_arrival;
    else if (wanted.mode != ABORT && begun == wanted.connections) wake = end;
    set_timer(timer, wake < end ? wake : end);
    struct epoll_event happened[BATCH];
    int found = epoll_wait(poller, happened, BATCH, -1);
    for (int i = 0; i < found; i++) {
      struct connection *c = happened[i].data.ptr;
      if (c == NULL) {
        clear_timer(timer);
        continue;
      }
      if (c->fd >= 0 && happened[i].events & EPOLLOUT) push(c);
      if (c->fd >= 0 && happened[i].events & (EPOLLIN | EPOLLHUP | EPOLLERR)) read_from(c);
    }
  }
}

static bool all_quiet(void) {
  for (int i = 0; i < wanted.connections; i++)
    if (connections[i].busy) return false;
  return true;
}

/* What is reported. */

static int ascending(const void *one, const void *other) {
  int64_t a = *(const int64_t *)one, b = *(const int64_t *)other;
  return a < b ? -1 : a > b;
}

static void print_series(const char *name, struct series *s) {
  static const double shares[] = {0.5, 0.9, 0.99, 1};
  static const char *names[] = {"p50", "p90", "p99", "max"};
  qsort(s->values, s->size, sizeof *s->values, ascending);
  double sum = 0;
  for (size_t i = 0; i < s->size; i++) sum += (double)s->values[i];
  printf(",\"%s\":{\"count\":%zu", name, s->size);
  if (s->size > 0) {
    printf(",\"mean\":%.9f", sum / (double)s->size / 1e9);
    for (int i = 0; i < 4; i++) {
      size_t rank = (size_t)ceil(shares[i] * (double)s->size);
      printf(",\"%s\":%.9f", names[i], (double)s->values[rank > 0 ? rank - 1 : 0] / 1e9);
    }
  }
  printf("}");
}

static void report(double seconds) {
  printf("{\"seconds\":%.6f,\"requests\":%ld,\"errors\":%ld,\"wrong\":%ld,\"status\":%ld,\"reopened\":%ld,\"events\":%ld,"
         "\"aborts\":%ld,\"aborts_measured\":%ld,\"unfinished\":%ld,\"opened\":%d",
         seconds, counted.requests, counted.errors, counted.wrong, counted.status, counted.reopened, counted.events,
         counted.aborts, counted.aborts_measured, counted.unfinished, opened);
  print_series("delay", &delays);
  print_series("first_event", &first_events);
  print_series("under_way", &under_way);
  puts("}");
}

static void say(const char *word) {
  puts(word);
  fflush(stdout);
}

static void read_options(int count, char **arguments) {
  static const char *modes[] = {"closed", "open", "hold", "abort"};
  static const struct option known[] = {
      {"port", 1, NULL, 'p'},    {"bodies", 1, NULL, 'b'}, {"connections", 1, NULL, 'c'}, {"seconds", 1, NULL, 's'},
      {"warmup", 1, NULL, 'w'},  {"spread", 1, NULL, 'd'}, {"rate", 1, NULL, 'r'},        {"events", 1, NULL, 'e'},
      {"token", 1, NULL, 't'},   {"seed", 1, NULL, 'n'},   {"leave-within", 1, NULL, 'l'}, {0}};
  int mode = 0;
  while (count > 1 && mode < 4 && strcmp(arguments[1], modes[mode]) != 0) mode++;
  if (count < 2 || mode == 4) die("usage: load closed|open|hold|abort --port N --bodies FILE ...");
  wanted.mode = (enum mode)mode;
  for (int option; (option = getopt_long(count - 1, arguments + 1, "", known, NULL)) != -1;) {
    switch (option) {
      case 'p': wanted.port = atoi(optarg); break;
      case 'b': wanted.bodies = optarg; break;
      case 'c': wanted.connections = atoi(optarg); break;
      case 's': wanted.seconds = atof(optarg); break;
      case 'w': wanted.warmup = atof(optarg); break;
      case 'd': wanted.spread = atof(optarg); break;
      case 'r': wanted.rate = atof(optarg); break;
      case 'e': wanted.events = atol(optarg); break;
      case 't': wanted.token = optarg; break;
      case 'n': wanted.seed = strtoull(optarg, NULL, 10); break;
      case 'l': wanted.leave_within = atof(optarg); break;
      default: die("unknown option");
    }
  }
  if (wanted.port == 0 || wanted.bodies == NULL || wanted.connections < 1) die("--port, --bodies and --connections are needed");
  if (wanted.mode == OPEN && wanted.rate <= 0) die("--rate is needed");
}

static void prepare(void) {
  raise_file_limit();
  load_bodies();
  random_state = wanted.seed * 0x9E3779B97F4A7C15ULL + 1;
  poller = epoll_create1(EPOLL_CLOEXEC);
  timer = new_timer();
  struct epoll_event events = {.events = EPOLLIN, .data.ptr = NULL};
  epoll_ctl(poller, EPOLL_CTL_ADD, timer, &events);
  connections = calloc((size_t)wanted.connections, sizeof *connections);
  idle = calloc((size_t)wanted.connections, sizeof *idle);
  if (connections == NULL || idle == NULL) die("out of memory");
  for (int i = 0; i < wanted.connections; i++) {
    connections[i].fd = -1;
    if (wanted.mode == OPEN) idle[idle_count++] = wanted.connections - 1 - i;
  }
}

int main(int count, char **arguments) {
  read_options(count, arguments);
  prepare();
  int64_t start = next_arrival = now_ns();
  if (wanted.mode == HOLD) run(start, start + OPENING_PATIENCE, true);
  run(start, now_ns() + (int64_t)(wanted.warmup * (double)SECOND), false);
  say("begin");
  measuring = true;
  int64_t begin = now_ns();
  run(start, begin + (int64_t)(wanted.seconds * (double)SECOND), false);
  measuring = false;
  double seconds = (double)(now_ns() - begin) / 1e9;
  say("end");
  stopping = true;
  if (wanted.mode == CLOSED || wanted.mode == OPEN) {
    for (int64_t patience = now_ns() + FINISHING_PATIENCE; now_ns() < patience && !all_quiet();)
      run(start, now_ns() + SECOND / 100, false);
    for (int i = 0; i < wanted.connections; i++) counted.unfinished += connections[i].busy;
  }
  for (int i = 0; i < wanted.connections; i++) {
    if (wanted.mode == ABORT && connections[i].busy && connections[i].fd >= 0) counted.aborts += connections[i].first != 0;
    close_connection(&connections[i]);
  }
  report(seconds);
  return 0;
}
