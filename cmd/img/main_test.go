package main

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"syscall"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/rogpeppe/go-internal/txtar"

	"img/dag"
	"img/dag/dockerfile"
	"img/engine"
	"img/exec/sandbox"
	"img/registry/image"
	"img/registry/layout"
	"img/userns"
)

// A shell is a place to run img in, with an environment of its own.
type shell struct {
	env   map[string]string
	stdin string
}

func newShell(t *testing.T) *shell {
	home := t.TempDir()
	if err := os.Chmod(home, 0o700); err != nil {
		t.Fatal(err)
	}
	return &shell{env: map[string]string{"HOME": home, "IMG_STATE": filepath.Join(home, "state")}}
}

func (s *shell) img(args ...string) (code int, stdout, stderr string) {
	var out, err bytes.Buffer
	code = run(args, Globals{
		stdin: strings.NewReader(s.stdin), stdout: &out, stderr: &err,
		getenv: func(k string) string { return s.env[k] },
	})
	return code, out.String(), err.String()
}

func parse(t *testing.T, env map[string]string, args ...string) (*buildRequest, error) {
	t.Helper()
	var g grammar
	g.stdout, g.stderr = io.Discard, io.Discard
	g.getenv = func(k string) string { return env[k] }
	var err error
	if g.settings, err = loadSettings(args, g.getenv); err != nil {
		return nil, err
	}
	k, err := newParser(&g, &g)
	if err != nil {
		t.Fatal(err)
	}
	args = withoutBuildx(args)
	if _, err := k.Parse(longForms(k.Model, args)); err != nil {
		return nil, usageError(args, err)
	}
	if err := g.settings.check(k.Model); err != nil {
		return nil, err
	}
	return g.Build.request(&g.Globals)
}

// What one types, and what it is called when it is wrong.
func TestUsage(t *testing.T) {
	for _, c := range []struct {
		args string
		code int
		says string
	}{
		{"", 0, "Commands:"},
		{"--help", 0, "Commands:"},
		{"build --help", 0, "--build-arg"},
		{"help build", 0, "--build-arg"},
		{"-v", 0, "img version dev"},
		{"-s /nowhere -v ls", 0, "img version dev"},
		{"version", 0, "runc:"},
		{"version --format json", 0, `"GoVersion"`},
		{"frob", 2, "'frob' is not an img command"},
		{"ls --frob", 2, "unknown flag --frob"},
		{"build", 2, "context is missing"},
		{"build . –t x", 2, "type \"-t\""},
		{"build . —tag x", 2, "type \"--tag\""},
		{"build . --tagg x", 2, "did you mean \"--tag\""},
		{"-b zfs ls", 2, "--backend"},
		{"save x --format tgz", 2, "docker or oci"},
		{"du -f color=red", 2, "known filters"},
		{"prune --keep-storage lots", 2, "number of bytes"},
		{"inspect nothere", 10, "img pull nothere"},
		{"inspect UPPER/case:x:y", 2, "image name"},
		{"login -u me", 2, "no terminal"},
		{"login --password-stdin", 2, "--username"},
	} {
		s := newShell(t)
		code, out, errs := s.img(strings.Fields(c.args)...)
		if code != c.code || !strings.Contains(out+errs, c.says) {
			t.Errorf("img %s: code %d, said\n%s%s", c.args, code, out, errs)
		}
		if c.code != 0 && out != "" {
			t.Errorf("img %s: an error on standard output: %s", c.args, out)
		}
	}
}

// A command line that docker, the original img or a script would use is accepted, and means this.
func TestBuildRequest(t *testing.T) {
	t.Chdir(t.TempDir()) // results are looked at beforehand: somewhere we may write
	yes := int64(1700000000)
	for _, c := range []struct {
		args string
		env  map[string]string
		look func(r *buildRequest) any
		want any
	}{
		{". -t app -t quay.io/a/b:1", nil, func(r *buildRequest) any { return r.Tags }, []string{"docker.io/library/app:latest", "quay.io/a/b:1"}},
		{"-t=app .", nil, func(r *buildRequest) any { return r.Tags }, []string{"docker.io/library/app:latest"}},
		{"- -t name", nil, func(r *buildRequest) any { return r.Context }, NamedContext{"-", "-"}},
		{". -f -", nil, func(r *buildRequest) any { return r.File }, "-"},
		{". --build-arg A=1,2 --build-arg B --build-arg C", map[string]string{"B": "b"}, func(r *buildRequest) any { return r.BuildArgs }, map[string]string{"A": "1,2", "B": "b"}},
		{". --label a=1 --label b", nil, func(r *buildRequest) any { return r.Labels }, map[string]string{"a": "1", "b": ""}},
		{". --pull", nil, func(r *buildRequest) any { return r.Pull }, "always"},
		{"--pull .", nil, func(r *buildRequest) any { return []string{r.Pull, r.Context.Value} }, []string{"always", "."}},
		{". --pull=newer", nil, func(r *buildRequest) any { return r.Pull }, "newer"},
		{". --pull=false", nil, func(r *buildRequest) any { return r.Pull }, "missing"},
		{". --offline", nil, func(r *buildRequest) any { return r.Pull }, "never"},
		{". -o out", nil, func(r *buildRequest) any { return r.Outputs }, []Output{{Type: "local", Dest: "out"}}},
		{". -o -", nil, func(r *buildRequest) any { return r.Outputs }, []Output{{Type: "tar", Dest: "-"}}},
		{`. -o type=oci,"dest=a,b.tar" -o type=cacheonly`, nil, func(r *buildRequest) any { return r.Outputs },
			[]Output{{Type: "oci", Dest: "a,b.tar", Attrs: map[string]string{}}, {Type: "cacheonly", Attrs: map[string]string{}}}},
		{". -o type=docker", nil, func(r *buildRequest) any { return r.Outputs[0].Dest }, "-"},
		{". -o type=registry,name=a", nil, func(r *buildRequest) any { return r.Outputs[0] }, Output{Type: "image", Attrs: map[string]string{"name": "a", "push": "true"}}},
		{". --secret id=a,src=/etc/passwd --secret id=b,env=B --secret id=c --secret id=d,type=env", map[string]string{"c": "1"}, func(r *buildRequest) any { return r.Secrets },
			map[string]Secret{"a": {"a", "/etc/passwd", ""}, "b": {"b", "", "B"}, "c": {"c", "c", "c"}, "d": {"d", "", "d"}}},
		{". --add-host a:1.2.3.4 --add-host b=[::1]", nil, func(r *buildRequest) any { return r.Hosts }, []dag.Host{{Name: "a", IP: "1.2.3.4"}, {Name: "b", IP: "::1"}}},
		{". --build-context Base=docker-image://debian:12 --build-context d=../x", nil, func(r *buildRequest) any { return r.Contexts },
			map[string]NamedContext{"base": {"docker-image", "debian:12"}, "d": {"dir", "../x"}}},
		{". --no-console", nil, func(r *buildRequest) any { return r.Progress }, "plain"},
		{". -q=true --progress=plain", nil, func(r *buildRequest) any { return r.Progress }, "quiet"},
		{". --network=default", nil, func(r *buildRequest) any { return r.Network }, ""},
		{". --network none", nil, func(r *buildRequest) any { return r.Network }, "none"},
		{". --no-cache-filter a,b", nil, func(r *buildRequest) any { return r.NoCacheStage }, []string{"a", "b"}},
		{".", map[string]string{"SOURCE_DATE_EPOCH": "1700000000"}, func(r *buildRequest) any { return []any{r.Epoch, r.BuildArgs["SOURCE_DATE_EPOCH"]} }, []any{&yes, "1700000000"}},
		{". --timestamp 1700000000 --rewrite-timestamp=false", map[string]string{"SOURCE_DATE_EPOCH": "5"}, func(r *buildRequest) any { return []any{r.Epoch, r.RewriteTimes} }, []any{&yes, false}},
		{". --rm --force-rm=false --layers --compress --disable-content-trust --builder x --provenance=false --sbom=false --call build", nil, func(r *buildRequest) any { return r.Context.Value }, "."},
		{". --format docker", nil, func(r *buildRequest) any { return r.Docker }, true},
		{".", map[string]string{"IMG_PROGRESS": "plain"}, func(r *buildRequest) any { return r.Progress }, "plain"},
		{". --progress=tty", map[string]string{"IMG_BUILD_PROGRESS": "plain"}, func(r *buildRequest) any { return r.Progress }, "tty"},
		{". --platform local", nil, func(r *buildRequest) any { return r.Platforms }, []string{hostPlatform()}},
		{". --platform linux/arm64/v8,arm --platform linux/amd64,local --platform linux/arm64", nil, func(r *buildRequest) any { return []any{r.Platforms, r.Indexed} },
			[]any{[]string{"linux/arm64", "linux/arm/v7", "linux/amd64"}, true}},
		{". --platform linux/x86_64,linux/aarch64,linux/armhf,linux/armel,linux/amd64/v2", nil, func(r *buildRequest) any { return r.Platforms },
			[]string{"linux/amd64", "linux/arm64", "linux/arm/v7", "linux/arm/v6", "linux/amd64/v2"}},
		{". --platform amd64,arm64 --annotation a=b=c --annotation index,manifest[linux/arm64/v8]:d=", nil, func(r *buildRequest) any { return r.Annotations },
			dockerfile.Annotations{{Place: "manifest", Key: "a", Value: "b=c"}, {Place: "index", Key: "d"}, {Place: "manifest", Platform: "linux/arm64", Key: "d"}}},
		{". --build-arg BUILDKIT_MULTI_PLATFORM=1", nil, func(r *buildRequest) any { return []any{r.Platforms, r.Indexed} }, []any{[]string{hostPlatform()}, true}},
		{".", map[string]string{"DOCKER_DEFAULT_PLATFORM": "linux/s390x"}, func(r *buildRequest) any { return []any{r.Platforms, r.Indexed} },
			[]any{[]string{"linux/s390x"}, false}},
		{". --platform linux/arm64", map[string]string{"DOCKER_DEFAULT_PLATFORM": "linux/s390x"}, func(r *buildRequest) any { return r.Platforms }, []string{"linux/arm64"}},
	} {
		for _, command := range [][]string{{"build"}, {"bud"}, {"-d", "buildx", "build"}} {
			r, err := parse(t, c.env, append(command, strings.Fields(c.args)...)...)
			if err != nil {
				t.Errorf("%v %s: %v", command, c.args, err)
				continue
			}
			if got := c.look(r); !reflect.DeepEqual(got, c.want) {
				t.Errorf("%v %s: %v, want %v", command, c.args, got, c.want)
			}
		}
	}
}

// What cannot be done is refused by name, with a reason.
func TestBuildRefusals(t *testing.T) {
	for args, says := range map[string]string{
		". -f a -f b": "one Dockerfile",
		"- -f -":      "cannot be both",
		". --platform linux/arm64,amd64 -o type=docker":                        "does not currently support exporting manifest lists",
		". --platform linux/arm64,amd64 -o type=tar,platform-split=false":      "cannot share one root",
		". --platform linux/arm64,amd64 --build-arg BUILDKIT_MULTI_PLATFORM=0": "2 platforms exclude each other",
		". --build-arg BUILDKIT_MULTI_PLATFORM=maybe":                          "must be true or false",
		". --platform linux/nonsense/x/y":                                      "--platform",
		". --load":                                                             "--load is not served: there is no daemon",
		". --device /dev/null:x:y:z":                                           "the form is HOST[:PATH[:PERMISSIONS]]",
		". --device v.com/c=d,x=y":                                             "unexpected key 'x'",
		". --allow network.host,everything":                                    "unknown entitlement everything",
		". --allow device=a,b=c":                                               "unknown device config key",
		". --cap-add ALL":                                                      "--cap-add is not served",
		". -v /a:/b":                                                           "--volume is not served",
		". -m 1g":                                                              "--memory is not served",
		". --annotation a":                                                     "[WHERE:]KEY=VALUE",
		". --annotation =x":                                                    "[WHERE:]KEY=VALUE",
		". --annotation config:a=b":                                            "unknown annotation type \"config\"",
		". --annotation manifest[linux:a=b":                                    "is no place",
		". --annotation manifest[a/b/c/d]:a=b":                                 "--annotation",
		". --annotation index:a=b":                                             "index annotations not supported for single platform export",
		". --annotation a=b --format docker":                                   "exclude each other",
		". --provenance=max":                                                   "--provenance is not served",
		". --cache-to type=inline":                                             "--cache-to is not served",
		". --isolation chroot":                                                 "--isolation chroot is not served",
		". --network private":                                                  "no network helper",
		". --network bridge":                                                   "default, host or none",
		". --progress rawjson":                                                 "--progress rawjson is not served",
		". --progress loud":                                                    "auto, tty, plain or quiet",
		". --print xml":                                                        "--print must be plan or json",
		"--from-plan p -f x":                                                   "-f and --from-plan exclude each other",
		"--from-plan p --build-arg A=1":                                        "--build-arg and --from-plan exclude each other",
		"--from-plan p --platform linux/arm64":                                 "--platform and --from-plan exclude each other",
		"--from-plan p --check":                                                "--check and --from-plan exclude each other",
		"--from-plan p --pull":                                                 "--pull=always and --from-plan exclude each other",
		"--from-plan - -":                                                      "standard input cannot be both",
		"--from-plan p -o type=oci,dest=x,compression=zstd":                    "compression and --from-plan exclude each other",
		". -o type=image,dest=x":                                               "takes no dest",
		". -o type=local":                                                      "needs dest",
		". -o type=zip,dest=x":                                                 "is not served",
		". -o dest=x,tar=true":                                                 "type= is missing",
		". -o type=oci,dest=x,frob=1":                                          "no attribute \"frob\"",
		". -o type=oci,tar=false":                                              "needs dest=DIR",
		". -o type=oci,compression=lzma":                                       "compression must be",
		". -o - -o type=oci":                                                   "cannot share standard output",
		". --push":                                                             "--push needs a name",
		". -t Bad:Name:":                                                       "-t \"Bad:Name:\"",
		". -t a@sha256:" + zeros:                                               "digest cannot be given",
		". --secret src=x":                                                     "id= is missing",
		". --secret id=x,frob=y":                                               "unknown field",
		". --add-host a":                                                       "NAME:IP",
		". --add-host a:b":                                                     "no IP address",
		". --build-context a":                                                  "NAME=VALUE",
		". --build-context a=target:b":                                         "bake file",
		". --timestamp yesterday":                                              "seconds since 1970",
		". --timestamp 1 --source-date-epoch 2":                                "differ",
		". --jobs=-1":                                                          "negative",
		". --compression=bzip2":                                                "gzip, zstd or uncompressed",
		". --offline --pull=always":                                            "exclude each other",
	} {
		_, err := parse(t, nil, append([]string{"build"}, strings.Fields(args)...)...)
		if err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%s: %v", args, err)
		} else if code := exitCode(context.Background(), err); code != exitUsage {
			t.Errorf("%s: exit code %d", args, code)
		}
	}
}

const zeros = "0000000000000000000000000000000000000000000000000000000000000000"

// Each option that is not served has its reason, and the table has no others.
func TestUnservedTable(t *testing.T) {
	fields := reflect.TypeFor[unservedFlags]()
	if fields.NumField() != len(unserved) {
		t.Errorf("%d fields, %d reasons", fields.NumField(), len(unserved))
	}
	for i := range fields.NumField() {
		name := fields.Field(i).Tag.Get("name")
		if name == "" {
			name = kebab(fields.Field(i).Name)
		}
		if unserved[name] == "" {
			t.Errorf("--%s has no reason", name)
		}
	}
}

// Values come from the flag, else the environment, else the file; `img config` says which.
func TestConfig(t *testing.T) {
	s := newShell(t)
	s.env["XDG_CONFIG_HOME"] = s.env["HOME"]
	file := filepath.Join(s.env["HOME"], "img", "config.toml")
	write(t, file, "debug = true\nbackend = 'native'\n[build]\nprogress = 'plain'\nbuild_arg = ['A=1', 'B=2']\njobs = 3\n")
	s.env["IMG_BACKEND"] = "overlayfs"
	_, out, errs := s.img("config", "-s", s.env["HOME"])
	for _, want := range []string{
		"backend overlayfs IMG_BACKEND", "debug true " + file, "state " + s.env["HOME"] + " flag",
		"build.progress plain " + file, "build.build-arg A=1,B=2 " + file, "build.jobs 3 " + file,
	} {
		if !strings.Contains(strings.Join(strings.Fields(out), " "), want) {
			t.Errorf("no %q in\n%s%s", want, out, errs)
		}
	}
	r, err := parse(t, s.env, "build", ".")
	if err != nil || r.Progress != "plain" || r.BuildArgs["B"] != "2" {
		t.Errorf("%+v %v", r, err)
	}
	for text, says := range map[string]string{
		"frob = 1":          "no option \"frob\"",
		"[build]\nfrob = 1": "build has no option \"frob\"",
		"debug = ":          "config.toml:1:",
		"jobs = 1":          "no option \"jobs\"",
	} {
		write(t, file, text)
		if code, _, errs := s.img("ls"); code != 2 || !strings.Contains(errs, says) {
			t.Errorf("%s: %d %s", text, code, errs)
		}
	}
	if code, _, _ := s.img("ls", "--config", "/nowhere"); code != 2 {
		t.Errorf("a configuration file that is named must exist: %d", code)
	}
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestStatePath(t *testing.T) {
	for _, c := range []struct{ flag, data, home, want string }{
		{"/x", "/data", "/home/u", "/x"},
		{"", "/data", "/home/u", "/data/img"},
		{"", "/data:/other", "/home/u", "/data/img"},
		{"", "relative", "/home/u", "/home/u/.local/share/img"},
		{"", "", "/home/u", "/home/u/.local/share/img"},
		{"", "", "", "/tmp/img"},
	} {
		env := map[string]string{"XDG_DATA_HOME": c.data, "HOME": c.home}
		if got := statePath(c.flag, func(k string) string { return env[k] }); got != c.want {
			t.Errorf("%+v: %s", c, got)
		}
	}
}

func TestStateDir(t *testing.T) {
	none := func(string) string { return "" }
	home := t.TempDir()
	if err := os.Chmod(home, 0o700); err != nil {
		t.Fatal(err)
	}
	dir, err := stateDir(filepath.Join(home, "a b,c:d\n", "state"), none)
	if err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(dir); err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("%v %v", info.Mode(), err)
	}
	link := filepath.Join(home, "link")
	os.Symlink(dir, link)
	if got, err := stateDir(link, none); err != nil || got != dir {
		t.Errorf("through a link: %s %v", got, err)
	}
	open := filepath.Join(home, "open")
	os.Mkdir(open, 0o777)
	os.Chmod(open, 0o777)
	if _, err := stateDir(filepath.Join(open, "state"), none); err == nil || exitCode(context.Background(), err) != exitHost {
		t.Errorf("below a directory that others can write: %v", err)
	}
	if err := checkOwners(open, os.Geteuid(), true); err != nil {
		t.Errorf("in a pod: %v", err)
	}
	os.Chmod(open, 0o777|os.ModeSticky)
	if _, err := stateDir(filepath.Join(open, "state"), none); err != nil {
		t.Errorf("below a sticky directory: %v", err)
	}
	file := filepath.Join(home, "file")
	write(t, file, "")
	if _, err := stateDir(file, none); err == nil || !strings.Contains(err.Error(), "not a directory") {
		t.Errorf("a file: %v", err)
	}
	if os.Geteuid() == 0 {
		theirs := filepath.Join(home, "theirs")
		os.Mkdir(theirs, 0o700)
		os.Chown(theirs, 1234, 1234)
		if err := checkOwners(theirs, 1000, false); err == nil || !strings.Contains(err.Error(), "belongs to user 1234") {
			t.Errorf("somebody else's: %v", err)
		}
		if err := checkOwners(theirs, 0, false); err != nil {
			t.Errorf("root in a user's: %v", err)
		}
		if err := checkOwn(theirs, 0); err == nil || !strings.Contains(err.Error(), "belongs to user 1234") {
			t.Errorf("root in a user's, where everybody may put one: %v", err)
		}
		os.Chmod(theirs, 0o775)
		if err := checkOwners(theirs, 1234, false); err != nil {
			t.Errorf("writable for a group of the user's own: %v", err)
		}
		os.Chown(theirs, 1234, 50)
		os.Chmod(theirs, 0o775)
		if err := checkOwners(theirs, 1234, false); err == nil || !strings.Contains(err.Error(), "chmod go-w") {
			t.Errorf("writable for a group: %v", err)
		}
	}
}

func TestLockState(t *testing.T) {
	dir := t.TempDir()
	ctx, cancel := context.WithCancelCause(context.Background())
	a, err := lockState(ctx, dir, false, nil)
	if err != nil {
		t.Fatal(err)
	}
	b, err := lockState(ctx, dir, false, nil)
	if err != nil {
		t.Fatal(err)
	}
	stopped := interrupted{syscall.SIGINT}
	if _, err := lockState(ctx, dir, true, func() { cancel(stopped) }); !errors.Is(err, stopped) {
		t.Errorf("waiting while two hold it: %v", err)
	}
	a()
	b()
	c, err := lockState(context.Background(), dir, true, nil)
	if err != nil {
		t.Fatal(err)
	}
	c()
}

// What reads images holds off prune, which would delete what they are made of.
func TestReadersWaitForPrune(t *testing.T) {
	for name, run := range map[string]func(context.Context, *Globals) error{
		"save":   (&SaveCmd{Image: []string{"a"}, Format: "oci"}).Run,
		"push":   (&PushCmd{Image: []string{"a"}}).Run,
		"unpack": (&UnpackCmd{Image: "a", Output: filepath.Join(t.TempDir(), "new")}).Run,
	} {
		s := newShell(t)
		g := &Globals{stdout: io.Discard, State: s.env["IMG_STATE"], getenv: func(k string) string { return s.env[k] }}
		dir, err := g.stateDir()
		if err != nil {
			t.Fatal(err)
		}
		prune, err := lockState(context.Background(), dir, true, nil)
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancelCause(context.Background())
		stopped := interrupted{syscall.SIGINT}
		g.stderr = writerFunc(func(p []byte) {
			if bytes.Contains(p, []byte("waiting for img prune to end")) {
				cancel(stopped)
			}
		})
		if err := run(ctx, g); !errors.Is(err, stopped) {
			t.Errorf("%s: %v", name, err)
		}
		prune()
	}
}

type writerFunc func(p []byte)

func (f writerFunc) Write(p []byte) (int, error) { f(p); return len(p), nil }

// The names of outputs do not get into each other's lists: whoever appends to the tags has them for itself.
func TestBuildNames(t *testing.T) {
	out := Output{Type: outOCI, Attrs: map[string]string{"name": "other"}}
	b := &build{r: &buildRequest{Tags: append(make([]string, 0, 4), "app"), Outputs: []Output{out}}}
	names := b.names()
	if spare := b.r.Tags[:2]; spare[1] != "" {
		t.Errorf("wrote %q behind the tags", spare[1])
	}
	if len(names) != 2 {
		t.Errorf("names: %q", names)
	}
}

// Every kind of failure has its words, its hint and its exit code.
func TestReport(t *testing.T) {
	text := "FROM busybox\nRUN one\nRUN false \\\n\t&& x\nRUN four\nRUN five\n"
	exit := &sandbox.ExitError{Code: 7}
	step := &dag.Vertex{Name: "RUN false", Op: &dag.Run{Args: []string{"/bin/sh", "-c", "false"}}, Pos: dag.Pos{File: "Dockerfile", Line: 3, End: 4}}
	stopped, stop := context.WithCancelCause(context.Background())
	stop(interrupted{syscall.SIGTERM})
	for _, c := range []struct {
		name string
		err  error
		code int
		says []string
		ctx  context.Context
	}{
		{"none", nil, 0, nil, nil},
		{"plain", errors.New("no"), 1, []string{"img: error: no\n"}, nil},
		{"escape", errors.New("\x1b[2Jno"), 1, []string{"img: error: ^[[2Jno\n"}, nil},
		{"run", &engine.VertexError{Vertex: step, Err: exit}, 1, []string{
			"img: error: Dockerfile:3: process \"/bin/sh -c false\" did not complete successfully: exit code: 7\n",
			"Dockerfile:3\n--------------------\n   1 |     FROM busybox\n   2 |     RUN one\n   3 | >>> RUN false \\\n   4 | >>> \t&& x\n   5 |     RUN four\n   6 |     RUN five\n--------------------\n",
		}, nil},
		{"dockerfile", &dockerfile.Error{Pos: dag.Pos{File: "Dockerfile", Line: 4, Col: 5}, Err: errors.New("unknown x"), Hint: "did you mean y?"}, 2, []string{
			"img: error: Dockerfile:4:5: unknown x\n", "   4 | >>> \t&& x\n     |     \t   ^\n", "img: hint: did you mean y?\n"}, nil},
		{"host", fmt.Errorf("start: %w", &userns.Error{Err: errors.New("not allowed"), Remedy: "sysctl x=1"}), 20, []string{"start: not allowed", "img: hint: sysctl x=1"}, nil},
		{"disk full", &engine.VertexError{Vertex: step, Err: &os.PathError{Op: "write", Path: "x", Err: syscall.ENOSPC}}, 20, []string{"no space left", "inodes free; `img prune`"}, nil},
		{"source", sourceError(errors.New("no such host")), 10, []string{"no such host"}, nil},
		{"push", pushError(errors.New("denied")), 11, []string{"denied"}, nil},
		{"crash", &crash{"nil map"}, 100, []string{"internal error: nil map", "bug"}, nil},
		{"signal", context.Canceled, 143, []string{"img: error: "}, stopped},
	} {
		var errs bytes.Buffer
		g := &Globals{stderr: &errs, getenv: func(string) string { return "" }, State: t.TempDir()}
		g.addSource("Dockerfile", []byte(text))
		if c.ctx == nil {
			c.ctx = context.Background()
		}
		if code := report(c.ctx, g, c.err); code != c.code {
			t.Errorf("%s: exit code %d, want %d", c.name, code, c.code)
		}
		for _, want := range c.says {
			if !strings.Contains(errs.String(), want) {
				t.Errorf("%s: no %q in\n%s", c.name, want, errs.String())
			}
		}
		if c.err == nil && errs.Len() > 0 {
			t.Errorf("%s: %s", c.name, errs.String())
		}
	}
}

func TestTable(t *testing.T) {
	type row struct{ Name string }
	for format, want := range map[string]string{
		"":                "NAME   SIZE\na^[b   1B\n",
		"json":            "[\n\t{\n\t\t\"Name\": \"a\\u001bb\"\n\t}\n]\n",
		"{{.Name}}!":      "a^[b!\n",
		`table {{.Name}}`: "a^[b\n",
		"{{json .}}":      "{\"Name\":\"a\\u001bb\"}\n",
	} {
		tb := table{Columns: []string{"NAME", "SIZE"}}
		tb.add(row{"a\x1bb"}, "a\x1bb", "1B")
		var out bytes.Buffer
		if err := tb.print(&out, format); err != nil || out.String() != want {
			t.Errorf("%s: %v\n%q, want\n%q", format, err, out.String(), want)
		}
	}
	tb := table{Columns: []string{"NAME"}}
	tb.add(row{"a"}, "a")
	for _, bad := range []string{"{{.Name", "{{.Nope}}"} {
		if err := tb.print(io.Discard, bad); err == nil || exitCode(context.Background(), err) != exitUsage {
			t.Errorf("%s: %v", bad, err)
		}
	}
	var out bytes.Buffer
	(&table{}).print(&out, "json")
	if out.String() != "[]\n" {
		t.Errorf("no rows: %s", out.String())
	}
}

func TestHuman(t *testing.T) {
	for n, want := range map[int64]string{0: "0B", 1023: "1023B", 1024: "1KiB", 1536: "1.5KiB", 1238402: "1.181MiB", 3 << 30: "3GiB"} {
		if got := humanSize(n); got != want {
			t.Errorf("%d: %s, want %s", n, got, want)
		}
	}
	now := time.Unix(1e9, 0)
	for d, want := range map[time.Duration]string{
		0: "Less than a second ago", time.Second: "1 second ago", 5 * time.Minute: "5 minutes ago", 47 * time.Hour: "47 hours ago",
		72 * time.Hour: "3 days ago", 15 * 24 * time.Hour: "2 weeks ago", 800 * 24 * time.Hour: "2 years ago",
	} {
		if got := ago(now.Add(-d), now); got != want {
			t.Errorf("%v: %s, want %s", d, got, want)
		}
	}
	for in, want := range map[string]int64{"": 0, "5": 5, "1k": 1024, "512MB": 512 << 20, "1.5GiB": 3 << 29, "2T": 2 << 40} {
		if got, err := parseBytes(in); err != nil || got != want {
			t.Errorf("%s: %d %v", in, got, err)
		}
	}
}

// tarOf makes a tar with one file and padding behind it.
func tarOf(t *testing.T) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	if err := w.WriteHeader(&tar.Header{Name: "etc/motd", Mode: 0o644, Size: 5}); err != nil {
		t.Fatal(err)
	}
	w.Write([]byte("hello"))
	w.Close()
	b.Write(make([]byte, 4096))
	return b.Bytes()
}

// A tar imported in any compression is the same layer; what is no tar is refused and leaves nothing.
func TestPackTar(t *testing.T) {
	s, err := layout.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	plain := tarOf(t)
	var gz, zs bytes.Buffer
	g := gzip.NewWriter(&gz)
	g.Write(plain)
	g.Close()
	z, _ := zstd.NewWriter(&zs)
	z.Write(plain)
	z.Close()
	want := image.Digest(plain)
	var first v1.Descriptor
	for name, in := range map[string][]byte{"plain": plain, "gzip": gz.Bytes(), "zstd": zs.Bytes()} {
		l, err := packTar(context.Background(), s, bytes.NewReader(in), dag.Gzip)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if first.Size == 0 {
			first = l.Descriptor
		}
		if l.DiffID != want || !reflect.DeepEqual(l.Descriptor, first) {
			t.Errorf("%s: %v %v", name, l.DiffID, l.Descriptor)
		}
	}
	for _, kind := range []string{dag.Gzip, dag.Zstd, dag.Uncompressed} {
		l, err := packTar(context.Background(), s, bytes.NewReader(plain), kind)
		if err != nil {
			t.Fatal(err)
		}
		r, err := s.Fetch(context.Background(), l.Descriptor)
		if err != nil {
			t.Fatal(err)
		}
		body, err := image.DecompressAny(r)
		if err != nil {
			t.Fatal(err)
		}
		if back, err := io.ReadAll(body); err != nil || !bytes.Equal(back, plain) {
			t.Errorf("%s: comes back as %d bytes, %v", kind, len(back), err)
		}
		r.Close()
	}
	for name, in := range map[string]string{"text": "FROM scratch\n", "cut": string(plain[:700]), "empty": "", "cut gzip": gz.String()[:gz.Len()-9]} {
		if _, err := packTar(context.Background(), s, strings.NewReader(in), dag.Gzip); err == nil {
			t.Errorf("%s is taken", name)
		}
	}
}

// import, ls, tag, inspect, history, save, rm, load: what is printed where.
func TestImages(t *testing.T) {
	s := newShell(t)
	s.env["SOURCE_DATE_EPOCH"] = "1700000000"
	s.stdin = string(tarOf(t))
	must := func(args ...string) string {
		t.Helper()
		code, out, errs := s.img(args...)
		if code != 0 || errs != "" {
			t.Fatalf("img %v: %d %s", args, code, errs)
		}
		return out
	}
	want := func(got, part string) {
		t.Helper()
		if !strings.Contains(got, part) {
			t.Errorf("no %q in\n%s", part, got)
		}
	}
	if out := must("ls"); strings.Count(out, "\n") != 1 || !strings.HasPrefix(out, "NAME") {
		t.Errorf("an empty list: %q", out)
	}
	want(must("import", "-", "base:1", "-c", `ENV A=1 B="two words"`, "-c", `CMD ["sh"]`, "-c", "WORKDIR /w", "-m", "made"), "Loaded image: base:1\n")
	digest := strings.TrimSpace(must("ls", "--format", "{{.Digest}}"))
	want(must("ls"), digest)
	id := strings.TrimSpace(must("ls", "-q", "--no-trunc"))
	if out := must("tag", "base:1", "quay.io/x/y"); out != "Successfully tagged base:1 as quay.io/x/y\n" {
		t.Errorf("tag: %q", out)
	}
	for _, name := range []string{"base:1", id, digest, strings.TrimPrefix(id, "sha256:")[:12], "quay.io/x/y:latest"} {
		var cfg v1.ConfigFile
		out := must("inspect", name)
		if err := json.Unmarshal([]byte(out), &cfg); err != nil || cfg.Config.WorkingDir != "/w" || len(cfg.Config.Env) != 2 || cfg.Config.Env[1] != "B=two words" {
			t.Errorf("inspect %s: %v %s", name, err, out)
		}
		want(out, "\n\t\"config\": {")
	}
	if out := must("inspect", "-f", "{{.Config.WorkingDir}}", "base:1"); out != "/w\n" {
		t.Errorf("inspect -f: %q", out)
	}
	want(must("history", "base:1"), "made")
	for _, format := range []string{"docker", "oci"} {
		file := filepath.Join(s.env["HOME"], format+".tar")
		must("save", "-o", file, "--format", format, "base:1", "quay.io/x/y")
		if out := must("rm", "base:1"); out != "Removing base:1...\nSuccessfully removed base:1\n" {
			t.Errorf("rm: %q", out)
		}
		must("rmi", "quay.io/x/y")
		if out := must("images", "-q"); out != "" {
			t.Errorf("left: %s", out)
		}
		want(must("load", "-i", file), "Loaded image: base:1\n")
		if out := must("ls", "--format", "{{.ID}}", "base"); strings.TrimSpace(out) != id {
			t.Errorf("%s: came back as %s, was %s", format, out, id)
		}
	}
	if code, out, errs := s.img("rm", "nothere", "base:1"); code != 10 || strings.Contains(out, "base:1") || errs == "" {
		t.Errorf("rm stops at the first error: %d %s %s", code, out, errs)
	}
	if code, _, _ := s.img("rm", "-f", "nothere"); code != 0 {
		t.Errorf("rm -f: %d", code)
	}
}

// prune picks what du calls reclaimable, oldest first, and never what something that stays is built upon.
func TestChoosePrune(t *testing.T) {
	now := time.Unix(1e9, 0)
	u := func(id, parent string, size int64, hours int, free bool) usage {
		return usage{ID: id, Parent: parent, Type: kindSnapshot, Size: size, Reclaimable: free, LastUsed: now.Add(-time.Duration(hours) * time.Hour)}
	}
	theirs := func(u usage) usage { u.foreign, u.Reclaimable = true, false; return u }
	all := []usage{u("base", "", 100, 9, true), u("a", "base", 10, 5, true), u("b", "a", 1, 1, true), u("kept", "base", 7, 30, false)}
	for _, c := range []struct {
		filter []string
		keep   int64
		all    []usage
		want   string
	}{
		{nil, 0, all, "b a"},
		{nil, 0, all[:3], "b a base"},
		{nil, 1 << 40, all, ""},
		{nil, 17, all[:3], ""},
		{[]string{"until=4h"}, 0, all[:3], ""},
		{[]string{"until=30m"}, 0, all[:3], "b a base"},
		{[]string{"id=b"}, 0, all, "b base"[:1]},
		{[]string{"mutable"}, 0, all, ""},
		// Another mapping's snapshots have the same names: they neither go nor hold ours.
		{nil, 0, []usage{u("base", "", 100, 9, true), theirs(u("base", "", 100, 9, true)), theirs(u("a", "base", 10, 5, true))}, "base"},
		{nil, 100, []usage{theirs(u("base", "", 100, 9, true)), u("base", "", 100, 9, true)}, "base"},
	} {
		f, err := parseFilters(c.filter, usageFilters...)
		if err != nil {
			t.Fatal(err)
		}
		list, err := choose(c.all, f, c.keep, now)
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, u := range list {
			got = append(got, u.ID)
		}
		if strings.Join(got, " ") != c.want {
			t.Errorf("%v keep %d: %v, want %s", c.filter, c.keep, got, c.want)
		}
	}
}

// Credentials are kept as Docker keeps them, by mode 0600, and what else is in the file stays.
func TestLogin(t *testing.T) {
	registry := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if user, password, ok := r.BasicAuth(); !ok || user != "me" || password != "right" {
			w.Header().Set("WWW-Authenticate", `Basic realm="x"`)
			w.WriteHeader(http.StatusUnauthorized)
		}
	}))
	defer registry.Close()
	host := strings.TrimPrefix(registry.URL, "http://")
	s := newShell(t)
	file := filepath.Join(s.env["HOME"], ".docker", "config.json")
	write(t, file, `{"proxies": {"default": {}}, "auths": {"other": {"auth": "eA=="}}}`)
	os.Chmod(file, 0o644)
	s.stdin = "wrong\n"
	if code, _, errs := s.img("login", "-u", "me", "--password-stdin", host); code != 10 || !strings.Contains(errs, "does not take these credentials") {
		t.Errorf("wrong password: %d %s", code, errs)
	}
	s.stdin = "right\n"
	if code, out, errs := s.img("login", "-u", "me", "--password-stdin", host); code != 0 || out != "Login succeeded.\n" {
		t.Fatalf("%d %s %s", code, out, errs)
	}
	text, _ := os.ReadFile(file)
	for _, want := range []string{`"proxies"`, `"other"`, `"` + host + `"`, "bWU6cmlnaHQ="} {
		if !strings.Contains(string(text), want) {
			t.Errorf("no %s in %s", want, text)
		}
	}
	if info, _ := os.Stat(file); info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v", info.Mode())
	}
	if _, out, _ := s.img("logout", host); out != "Removing login credentials for "+host+"\nLogout succeeded.\n" {
		t.Errorf("logout: %q", out)
	}
	if _, out, _ := s.img("logout", host); out != "Not logged in to "+host+"\n" {
		t.Errorf("logout again: %q", out)
	}
}

func TestServerKey(t *testing.T) {
	for in, want := range map[string]string{
		"": dockerHub, "docker.io": dockerHub, "https://index.docker.io/v1/": dockerHub,
		"quay.io": "quay.io", "https://r.example:5000/v2/": "r.example:5000",
	} {
		if got := serverKey(in); got != want {
			t.Errorf("%q: %s", in, got)
		}
	}
}

func FuzzOutput(f *testing.F) {
	for _, s := range []string{"-", "out", "type=local,dest=x", `type=oci,"dest=a,b"`, "type=image,name=a,push=true", "type=,", `"`} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		o, err := parseOutput(s)
		if err == nil && outputAttrs[o.Type] == nil {
			t.Fatalf("%q gives type %q", s, o.Type)
		}
	})
}

func FuzzSecret(f *testing.F) {
	for _, s := range []string{"id=a", "id=a,src=b", "id=a,env=B,type=env", `"id=a`, "=,="} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if got, err := parseSecret(s); err == nil && (got.ID == "" || got.Src == "" && got.Env == "") {
			t.Fatalf("%q gives %+v", s, got)
		}
	})
}

// The front end that docs/instruction-stream.md shows is the one that plan_stream.txtar builds with.
func TestFrontEndOfTheDocs(t *testing.T) {
	doc, err := os.ReadFile("../../docs/instruction-stream.md")
	if err != nil {
		t.Fatal(err)
	}
	script, err := txtar.ParseFile("../../testdata/script/plan_stream.txtar")
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range script.Files {
		if f.Name == "steps.sh" && !strings.Contains(string(doc), "```sh\n"+string(f.Data)+"```\n") {
			t.Error("steps.sh differs")
		}
	}
}
