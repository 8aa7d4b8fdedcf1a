//go:build !seccomp || !cgo

package sandbox

// libcontainer built without libseccomp refuses every profile, so such a binary could run no step. Better that there is none.
var _ = sandbox_needs_cgo_and_the_build_tag_seccomp
