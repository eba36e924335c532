import { readdirSync, readFileSync, statSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { gzipSync } from 'node:zlib'
import { defineConfig, type Plugin } from 'vite'

/** Puts FILE.gz beside every text file that it makes smaller: the server hands out files as they are. */
function compress(): Plugin {
  let directory = ''
  const visit = (path: string): void => {
    for (const name of readdirSync(path)) {
      const file = join(path, name)
      if (statSync(file).isDirectory()) visit(file)
      else if (/\.(html|js|css|svg|json)$/.test(name)) {
        const content = readFileSync(file)
        const small = gzipSync(content, { level: 9 })
        if (small.length < 0.9 * content.length) writeFileSync(`${file}.gz`, small)
      }
    }
  }
  return {
    name: 'compress',
    apply: 'build',
    configResolved: (config) => {
      directory = join(config.root, config.build.outDir)
    },
    closeBundle: () => visit(directory),
  }
}

export default defineConfig({
  // The server may stand below any prefix.
  base: './',
  resolve: { preserveSymlinks: true },
  build: {
    target: 'es2022',
    assetsInlineLimit: 0,
    // three.js and openchemlib are what they are; the latter is loaded when it is needed.
    chunkSizeWarningLimit: 1500,
    modulePreload: { polyfill: false },
  },
  worker: { format: 'es' },
  plugins: [compress()],
  server: {
    proxy: {
      '/ws': { target: process.env.UMASERVE ?? 'http://127.0.0.1:8000', ws: true },
      '/serve': process.env.UMASERVE ?? 'http://127.0.0.1:8000',
      '/recordings': process.env.UMASERVE ?? 'http://127.0.0.1:8000',
    },
  },
})
