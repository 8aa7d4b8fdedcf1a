package sandbox

import (
	"runtime"

	"golang.org/x/sys/unix"
)

// onOwnThread runs f on a thread that ends with it, whatever f did to the thread's root, namespaces and umask.
//
// It is never the first thread: that one cannot end, its state is what /proc/self shows, and other code goes by that.
func onOwnThread(f func()) {
	done := make(chan struct{})
	go func() {
		runtime.LockOSThread() // never unlocked
		if unix.Gettid() != unix.Getpid() {
			defer close(done)
			f()
			return
		}
		defer runtime.UnlockOSThread()
		defer close(done)
		onOwnThread(f) // on another thread: this one is held meanwhile
	}()
	<-done
}
