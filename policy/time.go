package policy

import (
	"strings"
	"time"

	"cel.dev/cel-go/common/ast"
	"cel.dev/cel-go/common/types/ref"

	"github.com/pavise-project/pavise"
)

// This file is the time of day and of the week in conditions. The kernel knows both as one number, the minute of the week in the host's
// time zone (DimTime); a test of a field is then a test that this number is in some ranges.

const (
	minutesOfDay  = 24 * 60
	minutesOfWeek = 7 * minutesOfDay
)

var dayNames = strings.Fields("mon tue wed thu fri sat sun")

var timeFields = []Field{
	{Name: "time.hour", Type: "int", Dim: DimTime, kind: kindHour, Doc: "Hour of the day in the host's time zone, 0 to 23.",
		event: func(e *pavise.Event) ref.Val { return intVal(uint64(localTime(e).Hour())) }},
	{Name: "time.minute", Type: "int", Dim: DimTime, kind: kindMinute, Doc: "Minute of the hour in the host's time zone, 0 to 59.",
		event: func(e *pavise.Event) ref.Val { return intVal(uint64(localTime(e).Minute())) }},
	{Name: "time.day", Type: "string", Dim: DimTime, kind: kindDay, Doc: "Day of the week in the host's time zone: mon, tue, wed, thu, fri, sat or sun.",
		event: func(e *pavise.Event) ref.Val { return textVal(dayNames[(localTime(e).Weekday()+6)%7]) }},
}

func localTime(e *pavise.Event) time.Time { return time.Unix(0, e.Time).Local() }

// minuteOfWeek is DimTime's number for a time: Monday at 0:00 is 0.
func minuteOfWeek(t time.Time) int {
	return int(t.Weekday()+6)%7*minutesOfDay + t.Hour()*60 + t.Minute()
}

// timeSpans are the minutes of the week at which a field's value is in spans.
func timeSpans(k fieldKind, spans []span) []span {
	unit, cycle := uint64(1), uint64(60)
	switch k {
	case kindHour:
		unit, cycle = 60, minutesOfDay
	case kindDay:
		unit, cycle = minutesOfDay, minutesOfWeek
	}
	var out []span
	for at := uint64(0); at < minutesOfWeek; at += cycle {
		for _, s := range spans {
			out = append(out, span{at + s.lo*unit, at + (s.hi+1)*unit - 1})
		}
	}
	return mergeSpans(out)
}

// timeTest is the test that a field of the time is in spans.
func (c *checker) timeTest(e ast.Expr, f *Field, spans []span) *cnode {
	if len(spans) == 0 {
		return c.node(e, cFalse)
	}
	key := strings.TrimPrefix(f.Name, "time.") + "=" + spanText(spans)
	return c.leaf(e, newAtom(DimTime, key, numberPatterns(timeSpans(f.kind, spans), 2)))
}

// days is the test that the day is one of texts.
func (c *checker) days(e ast.Expr, f *Field, els []ast.Expr, texts []string) *cnode {
	var spans []span
	for i, s := range texts {
		found := false
		for d, name := range dayNames {
			if s == name {
				spans = append(spans, span{uint64(d), uint64(d)})
				found = true
			}
		}
		if !found {
			c.fail(els[min(i, len(els)-1)], "it is one of "+strings.Join(dayNames, ", "), "unknown day %q", s)
		}
	}
	return c.timeTest(e, f, mergeSpans(spans))
}
