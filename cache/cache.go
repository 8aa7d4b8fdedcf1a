// Package cache remembers which output each key produced, and why.
//
// It does not know what a step is: keys are digests of labelled text, outputs are words that mean something to the
// executor alone. Several processes may use one Store; they may do the same work twice, they never corrupt each
// other's.
package cache

import (
	"context"
	"time"
)

// A Key is the SHA-256, in hex, of a Hash's text.
type Key string

// An Output names what a step produced: a snapshot's name, a layer, a manifest. Only the executor knows which.
type Output string

// A Record says that a key produced an output. On disk it is one small file with its own checksum; a bad, cut or
// newer record is a miss, never an error.
type Record struct {
	Key    Key
	Output Output
	// Text is the key's text, so that a miss can be explained by the first line that differs.
	Text string
	// Step identifies the step across builds (name and stage), for finding the nearest earlier record.
	Step string
	// Cost is how long the step took.
	Cost time.Duration
	// Tier is the sandbox tier the step ran under; 0 for steps without a sandbox.
	Tier int
	// Boot is the boot id of the machine run that made the record.
	Boot string
	Made time.Time
}

// A Store is a directory of records. The zero value is not usable; call Open.
type Store struct{ dir string }

// Open uses dir (<state>/cache/keys), making it when missing.
func Open(dir string) (*Store, error) { panic("unwritten") }

// Get returns the record of a key, or false when there is none that can be trusted.
func (s *Store) Get(k Key) (Record, bool) { panic("unwritten") }

// Put publishes a record by rename.
func (s *Store) Put(r Record) error { panic("unwritten") }

// Remove forgets a key.
func (s *Store) Remove(k Key) error { panic("unwritten") }

// Each calls f for every readable record, in no particular order, until f returns false.
func (s *Store) Each(f func(Record) bool) error { panic("unwritten") }

// Lock makes equal keys run once across processes (flock, released by the kernel at death). waiting is called once
// if another process holds the lock. Unlock is idempotent.
func (s *Store) Lock(ctx context.Context, k Key, waiting func()) (unlock func(), err error) {
	panic("unwritten")
}
