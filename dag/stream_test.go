package dag

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

// Every field of every op, whatever it holds, goes to the stream and back; so does a field that is new. Only proxies stay out.
func TestEveryFieldIsInTheStream(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	for _, step := range stepNames {
		set := map[string]bool{}
		for range 300 {
			v := &Vertex{ID: 7, Op: newOp(strings.ToLower(step)), Inputs: []ID{2, 5}}
			scramble(r, reflect.ValueOf(v).Elem(), set, "Vertex")
			scramble(r, reflect.ValueOf(v.Op).Elem(), set, step)
			v.Pos.File = "f"
			e := encodeVertex(v)
			if e.err != nil {
				t.Fatalf("%s: %v", step, e.err)
			}
			spent := 0
			back, err := decodeVertex(&decoder{src: e.b.Bytes(), spent: &spent})
			if err != nil {
				t.Fatalf("%v\n%s", err, e.b.String())
			}
			newChecker().inputs(back) // makes Refs of ids; it does not matter here whether all inputs are somebody's
			if diff := cmp.Diff(v, back, cmpopts.EquateEmpty()); diff != "" {
				t.Fatalf("%s\n%s", diff, e.b.String())
			}
		}
		for field, changed := range set {
			if !changed {
				t.Errorf("%s never had a value", field)
			}
		}
	}
}

// scramble gives the fields of a struct random values, often none, and notes which had one.
func scramble(r *rand.Rand, v reflect.Value, set map[string]bool, name string) {
	for i := range v.NumField() {
		f, path := v.Field(i), name+"."+v.Type().Field(i).Name
		switch v.Type().Field(i).Name {
		case "ID", "Op", "Inputs":
			if name == "Vertex" {
				continue
			}
		case "ProxyEnv":
			continue
		}
		random(r, f, set, path)
		set[path] = set[path] || !f.IsZero()
	}
}

func random(r *rand.Rand, v reflect.Value, set map[string]bool, path string) {
	if _, ok := v.Interface().(Ref); ok {
		v.SetInt(int64(r.IntN(3) - 1))
		return
	}
	if strings.HasSuffix(path, "MANIFEST.Config") { // the only field that must be there
		v.SetBytes([]byte(`{"a":"\u003c","b":[1,{"c":null}]}`))
		return
	}
	if v.Kind() != reflect.Struct && r.IntN(3) == 0 {
		return
	}
	switch v.Kind() {
	case reflect.String:
		v.SetString([]string{"a", "\xff\"", "<&\u2028>\\\n", "{\"base64\":\"\"}", "é\x00"}[r.IntN(5)])
	case reflect.Bool:
		v.SetBool(true)
	case reflect.Int, reflect.Int64:
		v.SetInt(r.Int64N(1 << 40))
	case reflect.Uint32:
		v.SetUint(uint64(r.Uint32()))
	case reflect.Pointer:
		v.Set(reflect.New(v.Type().Elem()))
		random(r, v.Elem(), set, path)
	case reflect.Map:
		v.Set(reflect.ValueOf(map[string]string{"k": "\xfe", "": "v"}))
	case reflect.Struct:
		scramble(r, v, set, path)
	case reflect.Slice:
		switch {
		case strings.HasSuffix(path, ".Env"):
			v.Set(reflect.ValueOf([]string{"Z=1", "=x", "A==\xff"}[r.IntN(2):]))
			return
		case v.Type().Elem().Kind() == reflect.Uint8:
			v.SetBytes([]byte("#!\xff\x00"))
			return
		}
		v.Set(reflect.MakeSlice(v.Type(), 1+r.IntN(3), 3))
		for i := range v.Len() {
			random(r, v.Index(i), set, path)
		}
	default:
		panic("no value for " + v.Type().String())
	}
}

// A line has one field of a name, whatever the step.
func TestStreamFieldNames(t *testing.T) {
	for _, step := range stepNames {
		var names []string
		for _, part := range []reflect.Type{reflect.TypeFor[streamHead](), reflect.TypeOf(newOp(strings.ToLower(step))).Elem(), reflect.TypeFor[streamTail]()} {
			for _, f := range streamFields(part) {
				if slices.Contains(names, f.name) {
					t.Errorf("%s has %q twice", step, f.name)
				}
				names = append(names, f.name)
			}
		}
	}
}

const (
	plainPlan = `{"step":"PLAN","format":1,"contexts":["context"],"targets":[{"platform":"linux/amd64","files":%s}]}` + "\n"
	config    = `"config":{"architecture":"amd64","os":"linux"}`
	zeros     = "sha256:0000000000000000000000000000000000000000000000000000000000000000"
	about     = `"name":"n","platform":"linux/amd64"}` + "\n"
	copyStep  = `{"step":"COPY","id":0,"base":-1,"sources":[{"from":{"context":"context"},"paths":["a"]}],"dest":"/",` + about
	imageStep = `{"step":"IMAGE","id":0,"chainID":"` + zeros + `","ref":"r","source":"registry","layers":[{"diffID":"` + zeros + `","digest":"` + zeros + `","size":1,"mediaType":"m"}],` + about
	runOn     = `{"step":"RUN","id":1,"inputs":[0],"base":0,"command":["x"],"dir":"/",` + about
	packOne   = `{"step":"PACK","id":2,"inputs":[1],"of":1,"compression":"gzip",` + about
	withImage = `{"step":"PLAN","format":1,"contexts":["context"],"targets":[{"platform":"linux/amd64","files":1,"manifest":3}]}` + "\n"
)

// head is a PLAN for files of a step.
func head(files string) string {
	return strings.Replace(fmt.Sprintf(plainPlan, files), "}]}", ","+config+"}]}", 1)
}

// run is a PLAN with a RUN that has more fields.
func run(more string) string {
	return head("0") + `{"step":"RUN","id":0,"base":-1,"command":["x"],"dir":"/",` + more + about
}

func git(more string) string {
	return head("-1") + `{"step":"GIT","id":0,` + more + `"name":"n"}` + "\n"
}

func manifest(more string) string {
	return `{"step":"MANIFEST","id":3,"inputs":[2],"packs":[2],` + more + about
}

// What lowering could not have made is an error with the place of the field. The column is where "@" stands in the text, which is not
// part of it.
func TestStreamErrors(t *testing.T) {
	layers := `"baseLayers":[{"diffID":"` + zeros + `","digest":"` + zeros + `","size":1,"mediaType":"m"}],`
	good := []string{
		head("-1"), head("0") + copyStep, run(""), head("1") + imageStep + runOn,
		withImage + imageStep + runOn + packOne + manifest(layers+config+","),
		strings.ReplaceAll(head("-1"), ",", " ,\t"),
	}
	for _, text := range good {
		if _, err := Decode("p", strings.NewReader(text)); err != nil {
			t.Errorf("%v\n%s", err, text)
		}
	}
	for text, want := range map[string]string{
		"":                                  "the stream is empty",
		"@\n":                               "the line ends where an object should be",
		"@[1]":                              "want an object, not an array",
		`{"step":@"RUN"}`:                   `step: the first line is a PLAN, not "RUN"`,
		`{"step":"PLAN","format":@2,"x":1}`: "format: the stream has format 2",
		`{"step":"PLAN","format":@1.0}`:     "format: want a whole number, not 1.0",
		`{"step":"PLAN",@"step":"PLAN"}`:    `"step" is there twice`,
		`@{"step":"PLAN","format":1}`:       `PLAN needs "targets"`,
		`{"step":"PLAN","format":1,"targets":[]} @x`:                       "something follows the object",
		`{"step":"PLAN","format":1,"targets":@[]}`:                         "targets: there are none",
		`{"step":"PLAN","format":1,"cache":@false,"targets":[]}`:           "cache: a PLAN is no step",
		"{\"step\":\"PL@\xffAN\"}":                                         "step: the byte 0xff is no UTF-8",
		"{\"step\":\"P@\tN\"}":                                             `step: the character '\t' in a string is written \u0009`,
		`{"step":"PLAN","format":1,"contexts":["@\ud800"]}`:                "contexts[0]: half of a surrogate pair",
		`{"step":"PLAN","format":1,"contexts":["@\q"]}`:                    "contexts[0]: unknown escape",
		`{"a":` + strings.Repeat("[", 63) + "[@" + strings.Repeat("[", 63): "a" + strings.Repeat("[0]", 64) + ": more than 64 values",
		strings.Replace(head("-1"), `"linux/amd64"`, `@"linux/x86_64"`, 1): `targets[0].platform: "linux/x86_64" is not normalised; write linux/amd64`,
		strings.Replace(head("-1"), `"linux/amd64"`, `@"Linux"`, 1):        `targets[0].platform: "Linux" is no platform`,
		head("@5"): "targets[0].files: 5 is no step with files",
		strings.Replace(head("-1"), `"os":"linux"`, `"os":@1`, 1):                            "targets[0].config.os: want a string, not 1",
		strings.Replace(head("-1"), `"os":"linux"`, `"os":"linux","config":{"Env":[@1]}`, 1): "targets[0].config.config.Env[0]: want a string, not 1",
		head("-1") + `{"step":@"FROM","id":0}`:                                               `step: unknown step "FROM"`,
		head("-1") + `{"step":@"run","id":0}`:                                                `step: unknown step "run"`,
		head("0") + strings.Replace(copyStep, `"id":0`, `"id":@1`, 1):                        "id: it is 1; ids count the steps from 0, so this is 0",
		head("0") + copyStep + strings.Replace(copyStep, `"id":0`, `"id":@0`, 1):             "id: it is 0; ids count the steps from 0, so this is 1",
		head("1") + copyStep + strings.Replace(runOn, `[0]`, `[@1]`, 1):                      "inputs[0]: 1 is no step before this one",
		head("1") + copyStep + strings.Replace(runOn, `[0]`, `[@-1]`, 1):                     "inputs[0]: -1 is no step before",
		head("1") + copyStep + strings.Replace(runOn, `[0]`, `[0,@0]`, 1):                    "inputs[1]: 0 is there twice",
		head("1") + copyStep + strings.Replace(runOn, `"base":0`, `"base":@5`, 1):            "base: 5 is not among the inputs",
		head("1") + copyStep + strings.Replace(runOn, `[0],"base":0`, `[@0],"base":-1`, 1):   "inputs[0]: no field of the step has it",
		run(`@"size":1,`):                                                                                     `RUN has no field "size"`,
		run(`"cache":@0,`):                                                                                    "cache: want true or false, not 0",
		run(`"env":{"A":"1",@"A":"2"},`):                                                                      `env: "A" is there twice`,
		run(`"env":{"A":@null},`):                                                                             `env["A"]: want a string, not null`,
		run(`"env":@{"A=B":"1"},`):                                                                            `env: the name "A=B" has a =`,
		run(`"env":{"A":"1"},"envOrder":[@"B"],`):                                                             `envOrder[0]: env has no "B"`,
		run(`"env":{"A":"","B":""},"envOrder":@["B"],`):                                                       "envOrder: it has 1 names, env has 2",
		run(`"network":@"bridge",`):                                                                           "network: it is none, host or private",
		run(`"security":@"sandbox",`):                                                                         "security: it is insecure but is",
		run(`"script":@"x",`):                                                                                 "script: script and scriptPath go together",
		run(`"script":"x","scriptPath":@"/etc/x",`):                                                           `scriptPath: "/etc/x" is no file in /dev/pipes/`,
		run(`"script":"x","scriptPath":@"/dev/pipes/../x",`):                                                  `scriptPath: "/dev/pipes/../x" is no file`,
		run(`"hosts":[{"name":@"a b","ip":"::1"}],`):                                                          `hosts[0].name: "a b" is no host name`,
		run(`"hosts":[{"name":"a","ip":@"x"}],`):                                                              `hosts[0].ip: "x" is no IP address`,
		run(`"mounts":[{"type":@"nfs","target":"/a"}],`):                                                      `mounts[0].type: unknown type of mount "nfs"`,
		run(`"mounts":[{"type":"tmpfs","target":@"a"}],`):                                                     `mounts[0].target: "a" is not absolute`,
		run(`"mounts":[{"type":"tmpfs","target":@"/x/.."}],`):                                                 `mounts[0].target: invalid mount target "/x/.."`,
		run(`"mounts":[{"type":"tmpfs","target":"/a","size":@-1}],`):                                          "mounts[0].size: -1 is negative",
		run(`"mounts":[{"type":"tmpfs","target":"/a","id":@"x"}],`):                                           "mounts[0].id: a tmpfs mount has none",
		run(`"mounts":[{"type":"bind","target":"/a","source":@"../x"}],`):                                     `mounts[0].source: "../x" is not absolute`,
		run(`"mounts":[{"type":"bind","target":"/a","source":@"/../x"}],`):                                    `mounts[0].source: "/../x" is written "/x"`,
		run(`"mounts":[{"type":"bind","target":"/a","source":"/","from":{"context":@"b"}}],`):                 `mounts[0].from.context: "b" is not among the contexts`,
		run(`"mounts":[{"type":"cache","target":"/a","source":"/","id":"i","sharing":@"some"}],`):             "mounts[0].sharing: it is shared, private or locked",
		run(`"mounts":[{"type":"secret","target":"/a","id":"i","mode":@4294967296}],`):                        "mounts[0].mode: 4294967296 is not between",
		head("0") + strings.Replace(copyStep, `"dest":"/"`, `"dest":@"x"`, 1):                                 `dest: "x" is not absolute`,
		head("0") + strings.Replace(copyStep, `"dest":"/"`, `"dest":@"/../x/"`, 1):                            `dest: "/../x" is written "/x"`,
		head("0") + strings.Replace(copyStep, `"dest"`, `"chmod":@"999","dest"`, 1):                           "chmod: invalid chmod parameter",
		head("0") + strings.Replace(copyStep, `"dest"`, `"files":[{"name":@"../x","data":""}],"dest"`, 1):     `files[0].name: the heredoc name "../x"`,
		head("0") + strings.Replace(copyStep, `["a"]`, `@[]`, 1):                                              "sources[0].paths: there are none",
		git(`"remote":@"file:///etc",`):                                                                       `remote: invalid git address "file:///etc"`,
		git(`"remote":@"-oProxyCommand=x",`):                                                                  "remote: invalid git address",
		git(`"remote":@"ssh://-oProxyCommand=x/y",`):                                                          "remote: invalid git address",
		git(`"remote":"https://e.com/r","ref":@"--upload-pack=x",`):                                           "ref: invalid git ref",
		git(`"remote":"https://e.com/r","subdir":@"../..",`):                                                  `subdir: "../.." is not relative and clean`,
		git(`"remote":"https://e.com/r","mtime":@"now",`):                                                     "mtime: it is commit",
		git(`"remote":"https://e.com/r","checksum":@"xyz",`):                                                  "checksum: invalid checksum xyz",
		head("-1") + `{"step":"HTTP","id":0,"url":@"file:///etc/passwd","file":"x","name":"n"}`:               "url: \"file:///etc/passwd\" is no http or https URL",
		head("-1") + `{"step":"HTTP","id":0,"url":"http://a/b","file":@"../x","name":"n"}`:                    `file: "../x" is no file name`,
		head("-1") + `{"step":"HTTP","id":0,"url":"http://a/b","file":"x","checksum":@"sha256:1","name":"n"}`: "checksum: invalid checksum digest format",
		head("1") + strings.Replace(imageStep, `"chainID":"sha256:0`, `"chainID":@"sha256:1`, 1) + runOn:      "chainID: the layers have the ChainID " + zeros,
		head("1") + strings.Replace(imageStep, `"size":1`, `"size":@-1`, 1) + runOn:                           "layers[0].size: -1 is negative",
		head("1") + strings.Replace(imageStep, `"diffID":"`, `"diffID":@"x`, 1) + runOn:                       "layers[0].diffID:",
		// Images whose layers do not lie on each other would be taken for others' files.
		withImage + imageStep + runOn + strings.Replace(packOne, `"of":1`, `"of":@0`, 1):                           "of: 0 is not among the inputs",
		withImage + imageStep + runOn + strings.Replace(packOne, `"inputs":[1],"of":1`, `"inputs":[0],"of":@0`, 1): "of: 0 is a IMAGE",
		withImage + imageStep + runOn + strings.Replace(packOne, `"gzip"`, `@"xz"`, 1):                             "compression: it is gzip, zstd or uncompressed",
		withImage + imageStep + runOn + packOne + manifest(layers+config+`,"baseHistory":@1,`):                     "baseHistory: 1 is not between 0 and the 0 entries",
		withImage + imageStep + runOn + packOne + manifest(layers+config+`,"epoch":@253402300800,`):                "epoch: 253402300800 is not between",
	} {
		before, after, placed := strings.Cut(text, "@")
		_, err := Decode("p", strings.NewReader(before+after))
		var e *StreamError
		if !errors.As(err, &e) {
			t.Errorf("%q is read: %v", text, err)
			continue
		}
		line := 1 + strings.Count(before, "\n")
		col := len([]rune(before[strings.LastIndexByte(before, '\n')+1:])) + 1
		if !strings.HasPrefix(e.Text(), want) || placed && (e.Pos.Line != line || e.Pos.Col != col) {
			t.Errorf("%v\nwant %d:%d: %s\n%s", err, line, col, want, text)
		}
	}
	for text, want := range map[string]string{
		withImage + imageStep + runOn + packOne + manifest(config+","):                                                      "baseLayers: they are not those of 0",
		withImage + copyStep + runOn + packOne + manifest(layers+config+","):                                                "baseLayers: the layers lie on 0, which is neither",
		strings.Replace(withImage, `"files":1`, `"files":0`, 1) + imageStep + runOn + packOne + manifest(layers+config+","): "targets[0].files: it is 0, and the layers of the MANIFEST are those of 1",
		head("1") + imageStep + runOn + packOne:                                                                             "targets: the PACK 2 is no image's",
	} {
		if _, err := Decode("p", strings.NewReader(text)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v\nwant %s", err, want)
		}
	}
}

// A byte of a stream can stand for hundreds in memory; there is an end to it.
func TestStreamLimits(t *testing.T) {
	line := strings.TrimSuffix(run(`"mounts":[`+strings.Repeat(`{},`, 1<<20)+`{}],`), "\n")
	if _, err := Decode("p", strings.NewReader(line)); err == nil {
		t.Error("a million mounts are read")
	}
	long := `{"step":"PLAN","format":1,"contexts":["` + strings.Repeat("x", maxStreamLine) + `"]}`
	if _, err := Decode("p", strings.NewReader(long)); err == nil || !strings.Contains(err.Error(), "32 MiB in a line") {
		t.Errorf("a long line: %v", err)
	}
	many := `{"step":"PLAN","format":1,"contexts":[` + strings.Repeat(`"",`, 8<<20) + `""]}`
	if _, err := Decode("p", strings.NewReader(many)); err == nil || !strings.Contains(err.Error(), "MiB of memory") {
		t.Errorf("many strings: %v", err)
	}
	g := &Graph{}
	g.Add(&Vertex{Op: &Run{Args: []string{strings.Repeat("x", maxStreamLine)}}, Name: "n"})
	if err := Encode(&bytes.Buffer{}, &Plan{Graph: g, Index: Empty}); err == nil {
		t.Error("a line that could not be read is written")
	}
}
