// How many CPUs this process may use.
#include <algorithm>
#include <fstream>
#include <sstream>
#include <string>
#include <thread>

#ifdef __linux__
#include <sched.h>
#endif

#include "thread_pool.h"

namespace ts {
namespace {

#ifdef __linux__
constexpr int64_t kUnlimited = INT64_MAX;

// A quota in whole CPUs, rounded up: with half of a CPU more than two, a third thread still helps.
int64_t cpus_of(int64_t quota, int64_t period) {
  return quota <= 0 || period <= 0 ? kUnlimited : (quota + period - 1) / period;
}

int64_t number_in(const std::string& path) {
  int64_t number = 0;
  std::ifstream(path) >> number;
  return number;
}

// The quota of a control group's folder, in version 2 ("max 100000" or "150000 100000") and in version 1.
int64_t quota_of(const std::string& folder) {
  std::ifstream both(folder + "/cpu.max");
  std::string quota;
  int64_t period = 0;
  if (both >> quota >> period) return quota == "max" ? kUnlimited : cpus_of(std::stoll(quota), period);
  return cpus_of(number_in(folder + "/cpu.cfs_quota_us"), number_in(folder + "/cpu.cfs_period_us"));
}

// The smallest quota of the process's control group and its ancestors. Within a container the path in /proc may be the
// host's, so the root of the mounted hierarchy is read as well.
int64_t smallest_quota() {
  int64_t smallest = kUnlimited;
  std::ifstream groups("/proc/self/cgroup");
  for (std::string line; std::getline(groups, line);) {
    std::istringstream fields(line);
    std::string number, controllers, path;
    std::getline(fields, number, ':');
    std::getline(fields, controllers, ':');
    std::getline(fields, path);
    const bool unified = controllers.empty();
    if (!unified && ("," + controllers + ",").find(",cpu,") == std::string::npos) continue;
    const std::string root = unified ? "/sys/fs/cgroup" : "/sys/fs/cgroup/cpu";
    for (;;) {
      smallest = std::min(smallest, quota_of(root + path));
      if (path.empty()) break;
      path.resize(path.rfind('/') == std::string::npos ? 0 : path.rfind('/'));
    }
  }
  return smallest;
}
#endif

}  // namespace

int64_t available_cpus() {
  int64_t cpus = std::max<int64_t>(std::thread::hardware_concurrency(), 1);
#ifdef __linux__
  cpu_set_t allowed;
  if (sched_getaffinity(0, sizeof allowed, &allowed) == 0) cpus = CPU_COUNT(&allowed);
  cpus = std::min(cpus, smallest_quota());
#endif
  return cpus;
}

}  // namespace ts
