#include "file.h"

#include <cerrno>
#include <cstddef>

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "weights are used where they are mapped, so the processor must be little-endian"
#endif

namespace ts::standalone {
namespace {

constexpr char kMagic[8] = {'\x89', 'T', 'S', 'N', '\r', '\n', '\x1a', '\n'};
constexpr uint32_t kByteOrder = 0x01020304;
constexpr uint16_t kMajor = 1, kMinor = 0;
constexpr uint64_t kAlignment = 64;  // of sections and of weights: a cache line
constexpr uint32_t kMostSections = 64;

struct Header {
  char magic[8];
  uint32_t byte_order;
  uint16_t major, minor;
  uint64_t file_size;
  uint32_t sections;
  uint32_t reserved;
  uint64_t table_checksum;
  uint64_t header_checksum;  // of all fields before it
  uint64_t unused[2];
};
static_assert(sizeof(Header) == 64);

struct Entry {
  char name[8];
  uint64_t offset, size, checksum;
};
static_assert(sizeof(Entry) == 32);

}  // namespace

uint64_t fletcher64(Span bytes) {
  constexpr uint64_t kModulus = UINT32_MAX;
  // Before a reduction the sums grow to kWords^2 / 2 * 2^32, which fits 64 bits.
  constexpr uint64_t kWords = 32768;
  uint64_t sum = 0, sums = 0;
  for (uint64_t at = 0; at < bytes.size;) {
    const uint64_t end = bytes.size - at > kWords * 4 ? at + kWords * 4 : bytes.size;
    for (; at + 4 <= end; at += 4) {
      uint32_t word;
      memcpy(&word, bytes.data + at, sizeof word);
      sum += word;
      sums += sum;
    }
    if (at < end) {
      uint32_t word = 0;
      memcpy(&word, bytes.data + at, end - at);
      sum += word;
      sums += sum;
      at = end;
    }
    sum %= kModulus;
    sums %= kModulus;
  }
  return sums << 32 | sum;
}

std::unique_ptr<Mapping> Mapping::open(const char* path) {
  const int file = ::open(path, O_RDONLY | O_CLOEXEC);
  if (file < 0) fail(SEPARABLE_ERROR_FILE, "%.200s cannot be opened: %s", path, strerror(errno));
  struct stat status;
  const bool known = fstat(file, &status) == 0;
  if (!known || !S_ISREG(status.st_mode) || status.st_size < static_cast<off_t>(sizeof(Header))) {
    close(file);
    if (known && S_ISREG(status.st_mode)) fail(SEPARABLE_ERROR_FORMAT, "%.200s is too short to be a network", path);
    fail(SEPARABLE_ERROR_FILE, "%.200s is not a regular file", path);
  }
  const size_t size = static_cast<size_t>(status.st_size);
  void* data = mmap(nullptr, size, PROT_READ, MAP_PRIVATE, file, 0);
  const int reason = errno;
  close(file);
  if (data == MAP_FAILED) fail(SEPARABLE_ERROR_FILE, "%.200s cannot be mapped: %s", path, strerror(reason));
  madvise(data, size, MADV_WILLNEED);  // only a hint: checksums read all of it next
  return std::unique_ptr<Mapping>(new Mapping(Span{static_cast<const uint8_t*>(data), size}, true));
}

std::unique_ptr<Mapping> Mapping::of(const void* data, size_t size) {
  if (!data || reinterpret_cast<uintptr_t>(data) % kAlignment != 0) {
    fail(SEPARABLE_ERROR_ARGUMENT, "a network in memory must begin at a multiple of 64 bytes");
  }
  return std::unique_ptr<Mapping>(new Mapping(Span{static_cast<const uint8_t*>(data), size}, false));
}

Mapping::~Mapping() {
  if (owned_) munmap(const_cast<uint8_t*>(bytes_.data), bytes_.size);
}

Sections::Sections(Span file) {
  Header header;
  if (file.size < sizeof header) fail(SEPARABLE_ERROR_FORMAT, "the file is too short to be a network");
  memcpy(&header, file.data, sizeof header);
  if (memcmp(header.magic, kMagic, sizeof kMagic) != 0) {
    fail(SEPARABLE_ERROR_FORMAT, "the file is not a compiled network: it does not begin with the signature of .tsn files");
  }
  if (header.byte_order != kByteOrder) fail(SEPARABLE_ERROR_FORMAT, "the file is not little-endian");
  if (header.major != kMajor || header.minor > kMinor) {
    fail(header.major < kMajor ? SEPARABLE_ERROR_FORMAT : SEPARABLE_ERROR_VERSION,
         "the file has format %d.%d and this library reads up to %d.%d: %s", header.major, header.minor, kMajor, kMinor,
         header.major < kMajor ? "export the network again" : "update the library");
  }
  if (header.header_checksum != fletcher64({file.data, offsetof(Header, header_checksum)})) {
    fail(SEPARABLE_ERROR_FORMAT, "the checksum of the header is wrong: the file is damaged");
  }
  if (header.file_size != file.size) {
    fail(SEPARABLE_ERROR_FORMAT, "the file has %llu bytes instead of %llu: it is truncated or has been appended to",
         static_cast<unsigned long long>(file.size), static_cast<unsigned long long>(header.file_size));
  }
  if (header.sections > kMostSections || file.size - sizeof header < header.sections * sizeof(Entry)) {
    fail(SEPARABLE_ERROR_FORMAT, "the file announces %u sections: it is damaged", header.sections);
  }
  const Span table{file.data + sizeof header, header.sections * sizeof(Entry)};
  if (header.table_checksum != fletcher64(table)) {
    fail(SEPARABLE_ERROR_FORMAT, "the checksum of the section table is wrong: the file is damaged");
  }
  for (uint32_t i = 0; i < header.sections; i++) {
    Entry entry;
    memcpy(&entry, table.data + i * sizeof entry, sizeof entry);
    if (entry.offset % kAlignment != 0 || entry.offset > file.size || entry.size > file.size - entry.offset) {
      fail(SEPARABLE_ERROR_FORMAT, "the section \"%.8s\" lies outside of the file, or not at a multiple of 64 bytes", entry.name);
    }
    const Span bytes{file.data + entry.offset, entry.size};
    if (fletcher64(bytes) != entry.checksum) {
      fail(SEPARABLE_ERROR_FORMAT, "the checksum of the section \"%.8s\" is wrong: the file is damaged", entry.name);
    }
    Section section{{}, bytes};
    memcpy(section.name, entry.name, sizeof section.name);
    sections_.push_back(section);
  }
}

Span Sections::at(const char* name) const {
  for (const Section& section : sections_) {
    if (strncmp(section.name, name, sizeof section.name) == 0) return section.bytes;
  }
  fail(SEPARABLE_ERROR_FORMAT, "the file has no section \"%s\"", name);
}

Texts::Texts(Span section) : copy_(section.data, section.data + section.size) {
  if (copy_.empty()) return;
  if (copy_.back() != 0) fail(SEPARABLE_ERROR_FORMAT, "the last text of the section \"texts\" has no end: the file is damaged");
  for (size_t at = 0; at < copy_.size(); at += strlen(copy_.data() + at) + 1) texts_.push_back(copy_.data() + at);
}

}  // namespace ts::standalone
