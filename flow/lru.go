package flow

// lru is a map that knows what was longest not asked for.
type lru[K comparable, V any] struct {
	nodes map[K]*node[K, V]
	root  node[K, V] // of the ring: next is the newest, prev the oldest
}

type node[K comparable, V any] struct {
	prev, next *node[K, V]
	key        K
	value      V
}

func newLRU[K comparable, V any]() *lru[K, V] {
	l := &lru[K, V]{nodes: map[K]*node[K, V]{}}
	l.root.prev, l.root.next = &l.root, &l.root
	return l
}

// get returns the value, which is now the newest, or nil.
func (l *lru[K, V]) get(k K) *V {
	n := l.nodes[k]
	if n == nil {
		return nil
	}
	if l.root.next != n {
		n.unlink()
		l.push(n)
	}
	return &n.value
}

// add puts an empty value where there is none yet.
func (l *lru[K, V]) add(k K) *V {
	n := &node[K, V]{key: k}
	l.nodes[k] = n
	l.push(n)
	return &n.value
}

func (l *lru[K, V]) remove(k K) {
	if n := l.nodes[k]; n != nil {
		n.unlink()
		delete(l.nodes, k)
	}
}

// oldest returns what was longest not asked for, or nil.
func (l *lru[K, V]) oldest() *node[K, V] {
	if l.root.prev == &l.root {
		return nil
	}
	return l.root.prev
}

func (l *lru[K, V]) push(n *node[K, V]) {
	n.prev, n.next = &l.root, l.root.next
	n.prev.next, n.next.prev = n, n
}

func (n *node[K, V]) unlink() {
	n.prev.next, n.next.prev = n.next, n.prev
}
