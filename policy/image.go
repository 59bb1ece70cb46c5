package policy

import "github.com/pavise-project/pavise"

// Image is all policies of a node compiled to plain tables, the form in which the kernel
// judges. It is immutable. docs/design/001-verdict-engine.md says how it is evaluated;
// Image.Judge is the same evaluation in Go, and bpf/engine.h the one in the kernel.
type Image struct {
	Automata []Automaton // at most MaxAutomata
	Ops      [pavise.NumOps]OpTable
	Rows     []Row    // Rows[0] is unused: row 0 means "every clause", and is skipped
	Words    []uint64 // the non-zero words of all rows
	Rules    []Rule   // by global rule number, as in pavise.Event.RuleIDs
	// Protected lists exact paths in explicit (not default) rules on operations whose object is an existing file, sorted. Enforce
	// gives the kernel their inodes, so that a hard link to such a file is judged under this name too.
	Protected []string

	Rates []Rate // at most MaxRates

	Sets [NumSetKinds][]*Set // by their bits in the dimensions of sets
	// ProtectedSets are those of paths that explicit rules on files ask for: their entries are protected as Protected is.
	ProtectedSets []*Set
}

// The limits of an Image. They are sizes of tables in the kernel (bpf/engine.h).
const (
	MaxAutomata  = 32
	MaxSlots     = 16      // automata that one operation consults
	MaxOpWords   = 256     // 64 clauses each: 16,384 clauses for one operation
	MaxAllWords  = 2048    // over all operations
	MaxRows      = 16384   // over all operations
	MaxRowWords  = 65536   // non-zero words of all rows
	MaxClassRows = 131072  // sum over operations and slots of the slot's classes
	MaxCells     = 2 << 20 // transitions of all automata together
	MaxStates    = 32768   // rows of one automaton; a state with bit 15 set is a leaf
	MaxLeaves    = 32767   // of one automaton
	MaxAllLeaves = 32768   // of all automata
	MaxAllStates = 131072  // rows of all automata
	MaxTails     = 1 << 20 // bytes of all tails
	MaxRules     = 16384
	MaxLast      = 64   // bytes that Automaton.Last can be
	MaxString    = 4095 // bytes of a path or name that the kernel judges; longer ones are "overlong"
)

// OpLate is the place in Image.Ops of the part of process.exec that is judged when the new program is in place, with its arguments: clauses
// on DimName. The events are process.exec's. (process.fork itself is judged by nothing.)
const OpLate = pavise.OpFork

// Dim is a fact that the kernel hands to the engine as a byte string. Numbers are big-endian.
// A fact that is absent (a port of a Unix socket) is the empty string.
type Dim uint8

// The dimensions. Those below DimPath describe the subject and are evaluated once per
// process and generation; the others describe the object and are evaluated per operation.
const (
	DimNone      Dim = 0
	DimExe       Dim = 1 // path of the executable
	DimParentExe Dim = 2 // path of the parent's executable
	DimScript    Dim = 3 // path of the script, empty when none
	DimCgroup    Dim = 4 // path of the cgroup
	DimUID       Dim = 5 // 4 bytes, effective
	DimGID       Dim = 6 // 4 bytes, effective
	DimLogin     Dim = 7 // 4 bytes, 0xffffffff when not set
	DimCaps      Dim = 8 // 8 bytes, effective
	DimProcFlags Dim = 9 // 1 byte, ProcFlag*

	DimArgs          Dim = 10 // the arguments, each followed by NUL
	DimAncestors     Dim = 11 // the executables' paths of the parent, its parent and so on, each followed by NUL; equal neighbours are one
	DimNS            Dim = 12 // 1 byte, pavise.NamespaceSet: those that are the machine's own
	DimRealUID       Dim = 13 // 4 bytes
	DimRealGID       Dim = 14 // 4 bytes
	DimDigest        Dim = 15 // of the executable's content, as text: "sha256:..."; empty when it is not known
	DimVerity        Dim = 16 // of fs-verity, likewise
	DimDigestSets    Dim = 18
	DimVeritySets    Dim = 19
	DimExeSets       Dim = 20 // 8 bytes: the sets that hold DimExe, a bit each (Image.Sets)
	DimParentExeSets Dim = 21
	DimScriptSets    Dim = 22

	DimPath       Dim = 24 // path of the file (process.exec: the new executable)
	DimAccess     Dim = 25 // 1 byte, pavise.Access
	DimOwner      Dim = 26 // 4 bytes, owner of the file
	DimMode       Dim = 27 // 2 bytes, stat's st_mode, type and permission bits
	DimFS         Dim = 28 // name of the file system type
	DimFileFlags  Dim = 29 // 1 byte, FileFlag*
	DimRemoteAddr Dim = 30 // 16 bytes, IPv4 as ::ffff:a.b.c.d; the unspecified address of a connect is given as loopback
	DimLocalAddr  Dim = 31 // 16 bytes
	DimRemotePort Dim = 32 // 2 bytes
	DimLocalPort  Dim = 33 // 2 bytes
	DimSocket     Dim = 34 // 3 bytes: family, type, protocol
	DimRemotePath Dim = 35 // Unix socket path; an abstract name begins with '@'
	DimLocalPath  Dim = 36
	DimValue      Dim = 37 // 8 bytes: pavise.ActInfo.Value
	DimValue2     Dim = 38 // 8 bytes: pavise.ActInfo.Value2
	DimName       Dim = 39 // pavise.ActInfo.Name
	DimNewPath    Dim = 40 // pavise.ActInfo.NewPath
	DimTargetExe  Dim = 41 // path of the target process's executable; for net.connect and net.accept, of the one at the remote end
	DimTargetUID  Dim = 42 // 4 bytes
	DimInterface  Dim = 43 // name of the network interface; empty when there is none

	DimPathSets       Dim = 48 // 8 bytes: the sets that hold DimPath, a bit each; the others likewise
	DimNewPathSets    Dim = 49
	DimTargetExeSets  Dim = 50
	DimRemotePathSets Dim = 51
	DimLocalPathSets  Dim = 52
	DimRemoteAddrSets Dim = 53
	DimLocalAddrSets  Dim = 54
	DimTime           Dim = 56 // 2 bytes: the minute of the week in the host's time zone, Monday at 0:00 is 0
	NumDims               = 64
)

// Bits of DimProcFlags and DimFileFlags.
const (
	ProcFlagDeleted    = 1 << 0 // the executable has no name any more
	ProcFlagMemfd      = 1 << 1
	ProcFlagSecureExec = 1 << 2 // set-user-ID, set-group-ID or file capabilities raised it
	ProcFlagTTY        = 1 << 3
	ProcFlagSetuid     = 1 << 5 // the executable's mode bits when it was started
	ProcFlagSetgid     = 1 << 6
	ProcFlagOnRoot     = 1 << 7 // the executable is on the machine's root file system

	FileFlagDeleted = 1 << 0
	FileFlagMemfd   = 1 << 1
)

// Automaton maps the byte string of one dimension to a class: the set of atoms (patterns,
// ranges, prefixes) that it satisfies. It reads from Start; a state below LeafBit is a row
// of 1<<Shift cells in Next; a state with LeafBit ends the reading. When the string ends
// in a row, the class is Accept[row].
type Automaton struct {
	Dim     Dim
	Shift   uint8      // log2 of the columns
	Column  [256]uint8 // byte -> column
	Start   uint16
	Next    []uint16 // len = rows << Shift
	Accept  []uint16 // class by row
	Leaves  []Leaf   // by state &^ LeafBit
	Tails   []byte   // the strings that leaves compare
	Last    uint16   // the class depends on so many bytes at the end of the string alone, and only these are read; 0: on all
	Classes int      // class numbers are 0..Classes-1; the last one, Overlong, is for strings over MaxString
}

// LeafBit marks a state as a leaf.
const LeafBit = 0x8000

// Leaf compares what is left of the string (after the byte that led here) with a tail, so that
// a long literal costs bytes and not rows. Match is the class when the whole rest equals the tail or, with
// Under, begins with the tail followed by '/' or, with LeafPrefix, begins with the tail; Miss otherwise. With Any the rest is not read and the class is Match.
type Leaf struct {
	TailOff     uint32
	TailLen     uint16
	Kind        LeafKind
	Match, Miss uint16
}

// LeafKind says how a Leaf compares.
type LeafKind uint8

// The kinds of leaves.
const (
	LeafAny    LeafKind = 0
	LeafExact  LeafKind = 1
	LeafUnder  LeafKind = 2
	LeafPrefix LeafKind = 3
)

// OpTable says how one operation is judged: the clause sets of its slots' classes are
// ANDed; what is left, word by word in order, gives the verdict.
type OpTable struct {
	Slots []Slot
	Words []Word   // one per 64 clauses
	Rule  []uint32 // clause -> number in Image.Rules; len = 64*len(Words); unused clauses are never set
}

// OtherFamilies reports whether a rule on op may hold for a socket of another family than IPv4 and IPv6, as far as a look at its automata tells.
func (img *Image) OtherFamilies(op pavise.Op) bool {
	t := &img.Ops[op]
	if !t.Used() {
		return false
	}
	for i := range t.Slots {
		s := &t.Slots[i]
		a := &img.Automata[s.Automaton]
		if a.Dim != DimSocket {
			continue
		}
		some := false
		a.ends(3, func(first byte) bool { return first != pavise.FamilyIPv4 && first != pavise.FamilyIPv6 }, func(class uint16) {
			row := s.ClassRow[class]
			some = some || row == 0 || img.Rows[row].Summary != [4]uint64{}
		})
		if !some {
			return false
		}
	}
	return true
}

// ends calls fn with each class that a string of n bytes may end in whose first byte is one of those, and perhaps with others.
func (a *Automaton) ends(n int, first func(byte) bool, fn func(class uint16)) {
	rows := map[uint16]bool{a.Start: true}
	for i := 0; ; i++ {
		next := map[uint16]bool{}
		for row := range rows {
			if row&LeafBit != 0 {
				leaf := &a.Leaves[row&^LeafBit]
				fn(leaf.Match)
				if leaf.Kind != LeafAny {
					fn(leaf.Miss)
				}
				continue
			}
			if i == n {
				fn(a.Accept[row])
				continue
			}
			for b := range 256 {
				if i > 0 || first(byte(b)) {
					next[a.Next[int(row)<<a.Shift|int(a.Column[b])]] = true
				}
			}
		}
		if rows = next; i == n {
			return
		}
	}
}

// Used reports whether any rule judges the operation: if not, its hook is not attached.
func (t *OpTable) Used() bool { return len(t.Words) > 0 }

// Slot is one automaton that an operation consults. ClassRow[class] is the row of clauses that
// hold for that class, 0 for all of them. Of net.accept, which is judged too when it is not known which process will accept, one more row
// follows, for a fact that may be any: clauses that allow and ask for it hold, others do not.
type Slot struct {
	Automaton int
	ClassRow  []uint32
}

// Row is a set of clauses of one operation: Summary has a bit for each non-zero word, and
// these words stand at Image.Words[Off:], in order.
type Row struct {
	Summary [4]uint64
	Off     uint32
}

// Word says what the 64 clauses of a word ask for. Words of an operation are ordered: enforced kill,
// enforced deny, then per policy with a default its allows followed by its default, then the
// same of monitored policies (kill, deny, groups), then audits; and then those with a rate, each rate in words of its own.
type Word struct {
	Kind    WordKind
	Action  pavise.Action // of WordExplicit and WordDefault
	Monitor bool
	Rate    uint16 // WordExplicit: 1 + the number in Image.Rates of the rate that must be passed; 0 for none
	Group   uint16 // WordAllow and WordDefault: number of the policy's group within the operation, from 1
	Clauses uint8  // how many of its bits are clauses, from the lowest; the AND of no rows has exactly these
}

// WordKind says how the clauses of a Word act.
type WordKind uint8

// The kinds of words.
const (
	WordExplicit WordKind = 1 // any clause left: Action
	WordAllow    WordKind = 2 // any clause left: the default of Group is met
	WordDefault  WordKind = 3 // any clause left, and no allow of Group was: Action
)

// Rule is what an event, `pavise explain` and the agent need to know of a rule. A policy's default for an operation is
// a rule too, named "default/" and the operation.
type Rule struct {
	Policy   string
	Name     string
	Index    int // in the policy's rules; -1 for a default
	Ops      []pavise.Op
	Action   pavise.Action
	Monitor  bool
	Severity string
	Message  string
	Tags     []string
	// Residual is a condition that user space must still evaluate on the event before it is
	// delivered, because the kernel cannot decide it: audit and monitored rules only. Nil when the kernel decides all.
	Residual *Expr
}
