/* A noisy neighbour: it writes to random cache lines of a large array until it is stopped.
   Usage: memory_load MEGABYTES SECONDS. It ends with its parent, and after SECONDS in any case. */
#include "common.h"
#include <signal.h>
#include <sys/prctl.h>

enum { LINE_WORDS = 8, WRITES_BETWEEN_LOOKS = 1 << 20 };

int main(int argc, char **argv) {
  if (argc != 3) die("usage: memory_load MEGABYTES SECONDS");
  prctl(PR_SET_PDEATHSIG, SIGKILL);
  size_t lines = (size_t)atol(argv[1]) * 1024 * 1024 / (LINE_WORDS * sizeof(uint64_t));
  uint64_t *words = lines ? malloc(lines * LINE_WORDS * sizeof(uint64_t)) : NULL;
  if (!words) die("no memory of %s MB", argv[1]);
  memset(words, 1, lines * LINE_WORDS * sizeof(uint64_t)); /* each page is mapped */
  puts("ready");
  fflush(stdout);
  int64_t end = now_ns() + atol(argv[2]) * SECOND;
  uint64_t state = 88172645463325252ULL;
  while (now_ns() < end) {
    for (int i = 0; i < WRITES_BETWEEN_LOOKS; i++) {
      state ^= state << 13; /* xorshift64 */
      state ^= state >> 7;
      state ^= state << 17;
      words[state % lines * LINE_WORDS] += state;
    }
  }
  return 0;
}
