/** The elements: symbol, mass, covalent radius, van der Waals radius, colour.
 *
 * Masses are the conventional atomic weights (IUPAC 2016) in dalton; covalent radii are those of
 * Cordero et al., Dalton Trans. 2008, 2832; van der Waals radii those of Bondi and Mantina et al.
 * (0 = not known); colours follow the customary CPK scheme as Jmol extends it. */

export interface Element {
  readonly number: number
  readonly symbol: string
  /** dalton */
  readonly mass: number
  /** covalent radius, Angstrom */
  readonly covalent: number
  /** van der Waals radius, Angstrom */
  readonly vdw: number
  /** sRGB */
  readonly colour: number
}

type Row = readonly [symbol: string, mass: number, covalent: number, vdw: number, colour: number]

// prettier-ignore
const ROWS: readonly Row[] = [
  ['H', 1.008, 0.31, 1.20, 0xe9edf2],
  ['He', 4.0026, 0.28, 1.40, 0xd9ffff],
  ['Li', 6.94, 1.28, 1.82, 0xcc80ff],
  ['Be', 9.01218, 0.96, 1.53, 0xc2ff00],
  ['B', 10.81, 0.84, 1.92, 0xffb5b5],
  ['C', 12.011, 0.76, 1.70, 0x5a6270],
  ['N', 14.007, 0.71, 1.55, 0x3b63e0],
  ['O', 15.999, 0.66, 1.52, 0xe2433a],
  ['F', 18.9984, 0.57, 1.47, 0x86d65c],
  ['Ne', 20.1797, 0.58, 1.54, 0xb3e3f5],
  ['Na', 22.9898, 1.66, 2.27, 0xab5cf2],
  ['Mg', 24.305, 1.41, 1.73, 0x8aff00],
  ['Al', 26.9815, 1.21, 1.84, 0xbfa6a6],
  ['Si', 28.085, 1.11, 2.10, 0xf0c8a0],
  ['P', 30.9738, 1.07, 1.80, 0xf08a24],
  ['S', 32.06, 1.05, 1.80, 0xe6c02a],
  ['Cl', 35.45, 1.02, 1.75, 0x2fbf4a],
  ['Ar', 39.948, 1.06, 1.88, 0x80d1e3],
  ['K', 39.0983, 2.03, 2.75, 0x8f40d4],
  ['Ca', 40.078, 1.76, 2.31, 0x3dff00],
  ['Sc', 44.9559, 1.70, 0.00, 0xe6e6e6],
  ['Ti', 47.867, 1.60, 0.00, 0xbfc2c7],
  ['V', 50.9415, 1.53, 0.00, 0xa6a6ab],
  ['Cr', 51.9961, 1.39, 0.00, 0x8a99c7],
  ['Mn', 54.938, 1.39, 0.00, 0x9c7ac7],
  ['Fe', 55.845, 1.32, 0.00, 0xe06633],
  ['Co', 58.9332, 1.26, 0.00, 0xf090a0],
  ['Ni', 58.6934, 1.24, 1.63, 0x50d050],
  ['Cu', 63.546, 1.32, 1.40, 0xc88033],
  ['Zn', 65.38, 1.22, 1.39, 0x7d80b0],
  ['Ga', 69.723, 1.22, 1.87, 0xc28f8f],
  ['Ge', 72.63, 1.20, 2.11, 0x668f8f],
  ['As', 74.9216, 1.19, 1.85, 0xbd80e3],
  ['Se', 78.971, 1.20, 1.90, 0xffa100],
  ['Br', 79.904, 1.20, 1.85, 0xa62929],
  ['Kr', 83.798, 1.16, 2.02, 0x5cb8d1],
  ['Rb', 85.4678, 2.20, 3.03, 0x702eb0],
  ['Sr', 87.62, 1.95, 2.49, 0x00ff00],
  ['Y', 88.9058, 1.90, 0.00, 0x94ffff],
  ['Zr', 91.224, 1.75, 0.00, 0x94e0e0],
  ['Nb', 92.9064, 1.64, 0.00, 0x73c2c9],
  ['Mo', 95.95, 1.54, 0.00, 0x54b5b5],
  ['Tc', 97.9072, 1.47, 0.00, 0x3b9e9e],
  ['Ru', 101.07, 1.46, 0.00, 0x248f8f],
  ['Rh', 102.906, 1.42, 0.00, 0x0a7d8c],
  ['Pd', 106.42, 1.39, 1.63, 0x006985],
  ['Ag', 107.868, 1.45, 1.72, 0xc0c0c0],
  ['Cd', 112.414, 1.44, 1.58, 0xffd98f],
  ['In', 114.818, 1.42, 1.93, 0xa67573],
  ['Sn', 118.71, 1.39, 2.17, 0x668080],
  ['Sb', 121.76, 1.39, 2.06, 0x9e63b5],
  ['Te', 127.6, 1.38, 2.06, 0xd47a00],
  ['I', 126.904, 1.39, 1.98, 0x940094],
  ['Xe', 131.293, 1.40, 2.16, 0x429eb0],
  ['Cs', 132.905, 2.44, 3.43, 0x57178f],
  ['Ba', 137.327, 2.15, 2.49, 0x00c900],
  ['La', 138.905, 2.07, 0.00, 0x70d4ff],
  ['Ce', 140.116, 2.04, 0.00, 0xffffc7],
  ['Pr', 140.908, 2.03, 0.00, 0xd9ffc7],
  ['Nd', 144.242, 2.01, 0.00, 0xc7ffc7],
  ['Pm', 144.913, 1.99, 0.00, 0xa3ffc7],
  ['Sm', 150.36, 1.98, 0.00, 0x8fffc7],
  ['Eu', 151.964, 1.98, 0.00, 0x61ffc7],
  ['Gd', 157.25, 1.96, 0.00, 0x45ffc7],
  ['Tb', 158.925, 1.94, 0.00, 0x30ffc7],
  ['Dy', 162.5, 1.92, 0.00, 0x1fffc7],
  ['Ho', 164.93, 1.92, 0.00, 0x00ff9c],
  ['Er', 167.259, 1.89, 0.00, 0x00e675],
  ['Tm', 168.934, 1.90, 0.00, 0x00d452],
  ['Yb', 173.054, 1.87, 0.00, 0x00bf38],
  ['Lu', 174.967, 1.87, 0.00, 0x00ab24],
  ['Hf', 178.49, 1.75, 0.00, 0x4dc2ff],
  ['Ta', 180.948, 1.70, 0.00, 0x4da6ff],
  ['W', 183.84, 1.62, 0.00, 0x2194d6],
  ['Re', 186.207, 1.51, 0.00, 0x267dab],
  ['Os', 190.23, 1.44, 0.00, 0x266696],
  ['Ir', 192.217, 1.41, 0.00, 0x175487],
  ['Pt', 195.084, 1.36, 1.75, 0xd0d0e0],
  ['Au', 196.967, 1.36, 1.66, 0xffd123],
  ['Hg', 200.592, 1.32, 1.55, 0xb8b8d0],
  ['Tl', 204.38, 1.45, 1.96, 0xa6544d],
  ['Pb', 207.2, 1.46, 2.02, 0x575961],
  ['Bi', 208.98, 1.48, 2.07, 0x9e4fb5],
  ['Po', 208.982, 1.40, 1.97, 0xab5c00],
  ['At', 209.987, 1.50, 2.02, 0x754f45],
  ['Rn', 222.018, 1.50, 2.20, 0x428296],
  ['Fr', 223.02, 2.60, 3.48, 0x420066],
  ['Ra', 226.025, 2.21, 2.83, 0x007d00],
  ['Ac', 227.028, 2.15, 0.00, 0x70abfa],
  ['Th', 232.038, 2.06, 0.00, 0x00baff],
  ['Pa', 231.036, 2.00, 0.00, 0x00a1ff],
  ['U', 238.029, 1.96, 1.86, 0x008fff],
  ['Np', 237.048, 1.90, 0.00, 0x0080ff],
  ['Pu', 244.064, 1.87, 0.00, 0x006bff],
  ['Am', 243.061, 1.80, 0.00, 0x545cf2],
  ['Cm', 247.07, 1.69, 0.00, 0x785ce3],
  ['Bk', 247.07, 2.00, 0.00, 0x8a4fe3],
  ['Cf', 251.08, 2.00, 0.00, 0xa136d4],
  ['Es', 252.083, 2.00, 0.00, 0xb31fd4],
  ['Fm', 257.095, 2.00, 0.00, 0xb31fba],
  ['Md', 258.098, 2.00, 0.00, 0xb30da6],
  ['No', 259.101, 2.00, 0.00, 0xbd0d87],
  ['Lr', 262.11, 2.00, 0.00, 0xc70066],
  ['Rf', 267.122, 2.00, 0.00, 0xcc0059],
  ['Db', 268.126, 2.00, 0.00, 0xd1004f],
  ['Sg', 271.134, 2.00, 0.00, 0xd90045],
  ['Bh', 270.133, 2.00, 0.00, 0xe00038],
  ['Hs', 269.134, 2.00, 0.00, 0xe6002e],
  ['Mt', 278.156, 2.00, 0.00, 0xeb0026],
  ['Ds', 281.165, 2.00, 0.00, 0xe63380],
  ['Rg', 281.166, 2.00, 0.00, 0xe63380],
  ['Cn', 285.177, 2.00, 0.00, 0xe63380],
  ['Nh', 286.182, 2.00, 0.00, 0xe63380],
  ['Fl', 289.19, 2.00, 0.00, 0xe63380],
  ['Mc', 289.194, 2.00, 0.00, 0xe63380],
  ['Lv', 293.204, 2.00, 0.00, 0xe63380],
  ['Ts', 293.208, 2.00, 0.00, 0xe63380],
  ['Og', 294.214, 2.00, 0.00, 0xe63380],
]

const TABLE: readonly Element[] = ROWS.map(([symbol, mass, covalent, vdw, colour], i) => ({
  number: i + 1,
  symbol,
  mass,
  covalent,
  vdw,
  colour,
}))

const UNKNOWN: Element = { number: 0, symbol: 'X', mass: 1, covalent: 0.8, vdw: 1.6, colour: 0xff00ff }

const BY_SYMBOL = new Map(TABLE.map((e) => [e.symbol.toLowerCase(), e]))
// Deuterium and tritium are hydrogen to a potential.
for (const isotope of ['d', 't']) BY_SYMBOL.set(isotope, TABLE[0]!)

/** The element with this atomic number; a placeholder outside 1 to 118. */
export function element(number: number): Element {
  return TABLE[number - 1] ?? UNKNOWN
}

/** The element with this symbol, case ignored. */
export function elementOfSymbol(symbol: string): Element | undefined {
  return BY_SYMBOL.get(symbol.trim().toLowerCase())
}

/** All elements by atomic number. */
export function elements(): readonly Element[] {
  return TABLE
}

