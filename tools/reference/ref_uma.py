"""
The UMA energy in float64 with plain torch ops, one system, explicit edges. Terse on purpose: run it
beside an implementation to compare intermediate values (`make_stages.py` writes them down). It agrees
with fairchem 2.24.0 to rounding. `python ref_bwd.py` checks the hand-written backward against autograd.

Needs: pip install fairchem-core==2.24.0
"""
import torch, math
import os, fairchem.core.models.uma as _uma
JD = os.path.join(os.path.dirname(_uma.__file__), "Jd.pt")
silu=torch.nn.functional.silu
class Ref:
    def __init__(s,ckpt,dtype=torch.float64):
        s.cfg=dict(ckpt.model_config['backbone']); s.heads=ckpt.model_config['heads']; s.mc=ckpt.model_config
        sd={}
        for k,v in ckpt.ema_state_dict.items():
            if k=='n_averaged': continue
            k=k[len('module.'):]
            sd[k]=v.to(dtype) if v.is_floating_point() else v
        s.W=sd; s.dt=dtype
        s.L=s.cfg['lmax']; s.M=s.cfg['mmax']
        s.J=[j.to(dtype) for j in torch.load(JD)]
        L,M=s.L,s.M
        # L-order list of (l,m) m=-l..l
        s.lm=[(l,m) for l in range(L+1) for m in range(-l,l+1)]
        idx={lm:i for i,lm in enumerate(s.lm)}
        order=[idx[(l,0)] for l in range(L+1)]
        for m in range(1,M+1):
            order+=[idx[(l,m)] for l in range(m,L+1)]
            order+=[idx[(l,-m)] for l in range(m,L+1)]
        s.order=torch.tensor(order); s.order_l=[s.lm[i][0] for i in order]
        s.l_of=torch.tensor([l for l,m in s.lm])
    def lin(s,p,x): 
        y=x@s.W[p+'.weight'].T
        return y+s.W[p+'.bias'] if p+'.bias' in s.W else y
    def ln(s,p,x): return torch.nn.functional.layer_norm(x,(x.shape[-1],),s.W[p+'.weight'],s.W[p+'.bias'],1e-5)
    def radial(s,p,x):
        x=silu(s.ln(p+'.net.1',s.lin(p+'.net.0',x)))
        x=silu(s.ln(p+'.net.4',s.lin(p+'.net.3',x)))
        return s.lin(p+'.net.6',x)
    def zrot(s,a,l):
        E=a.shape[0]; m=torch.zeros(E,2*l+1,2*l+1,dtype=a.dtype)
        for i in range(2*l+1):
            f=l-i
            m[:,i,2*l-i]=m[:,i,2*l-i]*0+torch.sin(f*a)
            m[:,i,i]=torch.cos(f*a)
        return m
    def wigner(s,v):
        R=s.fixedD(v.dtype)[1]   # l=1 block acts on (x,y,z) in this basis
        n=(v/v.norm(dim=1,keepdim=True))@R.T
        a=torch.atan2(n[:,0],n[:,2]); b=torch.acos(n[:,1].clamp(-1,1))
        E=v.shape[0]; D=torch.zeros(E,(s.L+1)**2,(s.L+1)**2,dtype=v.dtype); DR=s.fixedD(v.dtype)
        for l in range(s.L+1):
            J=s.J[l]
            d=s.zrot(0*a,l)@J@s.zrot(-b,l)@J@s.zrot(-a,l)
            D[:,l*l:(l+1)**2,l*l:(l+1)**2]=d@DR[l]
        return D
    def fixedD(s,dt):
        ang=[torch.tensor([x],dtype=dt) for x in (0.7,1.1,-0.4)]
        return [(s.zrot(ang[0],l)@s.J[l]@s.zrot(ang[1],l)@s.J[l]@s.zrot(ang[2],l))[0] for l in range(s.L+1)]
    def norm(s,p,x):
        x0=x[:,:1]-x[:,:1].mean(-1,keepdim=True)
        x=torch.cat([x0,x[:,1:]],1)
        w=torch.tensor([1./((2*l+1)*(s.L+1)) for l,m in s.lm],dtype=x.dtype)
        fn=((x**2)*w[None,:,None]).sum(1,keepdim=True).mean(2,keepdim=True)
        x=x*(fn+1e-5)**-0.5*s.W[p+'.affine_weight'][s.l_of][None]
        return torch.cat([x[:,:1]+s.W[p+'.affine_bias'],x[:,1:]],1)
    def moe(s,p,coef): return torch.einsum('e,eoi->oi',coef,s.W[p+'.weights'])
    def so2(s,p,x,rad,C,extra,coef):
        # x [E, nred, C] in m-order ; rad [E, sum] or None ; coef [n_experts]
        L,M=s.L,s.M; E=x.shape[0]; H=s.cfg['hidden_channels'] if extra else s.cfg['sphere_channels']
        n0=L+1; o=0; ro=0; out=[]
        x0=x[:,:n0].reshape(E,-1)
        if rad is not None: x0=x0*rad[:,:n0*C]; ro=n0*C
        y0=x0@s.moe(p+'.fc_m0',coef).T+s.W[p+'.fc_m0.bias']
        g=None
        if extra: g,y0=y0[:,:extra],y0[:,extra:]
        out.append(y0.reshape(E,n0,H)); o=n0
        for m in range(1,M+1):
            n=L-m+1
            r=x[:,o:o+n].reshape(E,n*C); i=x[:,o+n:o+2*n].reshape(E,n*C); o+=2*n
            if rad is not None:
                rr=rad[:,ro:ro+n*C]; ro+=n*C; r=r*rr; i=i*rr
            W=s.moe(p+f'.so2_m_conv.{m-1}.fc',coef); W1,W2=W[:n*H],W[n*H:]
            out.append((r@W1.T-i@W2.T).reshape(E,n,H)); out.append((i@W1.T+r@W2.T).reshape(E,n,H))
        return torch.cat(out,1),g
    def energy_norm(s,pos,cell,Z,src,tgt,offs,charge,spin,ds,include_self=False):
        """single system; returns normalised energy (sum over atoms)"""
        return s.energy_of_edges(pos[src]-pos[tgt]+offs@cell,Z,src,tgt,charge,spin,ds,include_self)
    def energy_of_edges(s,vec,Z,src,tgt,charge,spin,ds,include_self=False,stages=None):
        """as energy_norm, from edge vectors (source minus target); intermediate values go into the dict `stages`"""
        W=s.W; cfg=s.cfg; L=s.L; C=cfg['sphere_channels']; H=cfg['hidden_channels']; N=len(Z); dt=s.dt
        rc=cfg['cutoff']
        keep=(lambda name,v: stages.setdefault(name,[]).append(v.detach())) if stages is not None else (lambda name,v: None)
        d=vec.norm(dim=1)
        E=len(src)
        u=d/rc; env=torch.where(u<1,1-21*u**5+35*u**6-15*u**7,torch.zeros_like(u))
        nb=cfg['num_distance_basis']; mu=torch.linspace(0,rc,nb,dtype=dt); w=mu[1]-mu[0]
        g=torch.exp(-0.5/(cfg.get('_bw',2.0)*w)**2*(d[:,None]-mu)**2)
        xe=torch.cat([g,W['backbone.source_embedding.weight'][Z[src]],W['backbone.target_embedding.weight'][Z[tgt]]],1)
        ce=W['backbone.charge_embedding.rand_emb.weight'][charge+100]; se=W['backbone.spin_embedding.rand_emb.weight'][spin]
        de=W[f'backbone.dataset_embedding.dataset_emb_dict.{ds}.weight'][0]
        csd=silu(s.lin('backbone.mix_csd',torch.cat([ce,se,de])))
        comp=W['backbone.composition_embedding.weight'][Z]
        comp=comp.sum(0)/(N+1) if include_self else comp.mean(0)
        h=torch.cat([comp,csd]); h=silu(s.lin('backbone.routing_mlp.0',h)); h=silu(s.lin('backbone.routing_mlp.2',h)); h=silu(s.lin('backbone.routing_mlp.4',h))
        coef=torch.softmax(h,0)+0.005
        s.coef=coef
        keep('gaussians',g); keep('envelope',env); keep('csd',csd); keep('alpha',coef)
        D=s.wigner(vec)[:,s.order,:]; keep('wigner_m0',D[:,:L+1]); Di=D.transpose(1,2)*env[:,None,None]
        x=torch.zeros(N,(L+1)**2,C,dtype=dt); x[:,0]=W['backbone.sphere_embedding.weight'][Z]+csd
        r=s.radial('backbone.edge_degree_embedding.rad_func',xe).reshape(E,L+1,C)
        msg=Di[:,:,:L+1]@r
        x=x.index_add(0,tgt,msg/5.0)
        keep('radial_edge_degree',r); keep('nodes_initial',x)
        ol=torch.tensor(s.order_l)
        for b in range(cfg['num_layers']):
            p=f'backbone.blocks.{b}'
            res=x; x=s.norm(p+'.norm_1',x); x=torch.cat([x[:,:1]+csd,x[:,1:]],1)
            m=D@torch.cat([x[src],x[tgt]],2)
            rad=s.radial(p+'.edge_wise.so2_conv_1.rad_func',xe); keep('radial',rad)
            m,gate=s.so2(p+'.edge_wise.so2_conv_1',m,rad,2*C,L*H,coef)
            gate=torch.sigmoid(gate).reshape(E,L,H)
            m=torch.cat([silu(m[:,:1]),m[:,1:]*gate[:,ol[1:]-1]],1)
            m,_=s.so2(p+'.edge_wise.so2_conv_2',m,None,H,0,coef)
            m=Di@m
            x=torch.zeros_like(x).index_add(0,tgt,m)+res; keep('nodes_after_edgewise',x)
            res=x; x=s.norm(p+'.norm_2',x)
            q=p+'.atom_wise'
            gs=silu(s.lin(q+'.scalar_mlp.0',x[:,0]))
            def so3(nm,x):
                y=torch.einsum('nic,ioc->nio',x,W[nm+'.weight'][s.l_of])
                return torch.cat([y[:,:1]+W[nm+'.bias'],y[:,1:]],1)
            x=so3(q+'.so3_linear_1',x)
            gt=torch.sigmoid(gs).reshape(N,L,H)
            x=torch.cat([silu(x[:,:1]),x[:,1:]*gt[:,s.l_of[1:]-1]],1)
            x=so3(q+'.so3_linear_2',x)+res
            for chs,val,off in ((cfg.get('charge_balanced_channels') or [],charge,0),(cfg.get('spin_balanced_channels') or [],spin,1)):
                if len(chs):
                    chs=list(chs); tot=x[:,0,chs].sum(0); y=x.clone(); y[:,0,chs]=x[:,0,chs]-(tot-(val-off))/N; x=y
            keep('nodes_after_block',x)
        x=s.norm('backbone.norm',x); keep('final_norm_scalars',x[:,0])
        hp='output_heads.energyandforcehead.head.energy_block'
        def hl(i,x):
            if f'{hp}.{i}.weights' in W:
                w=W[f'{hp}.{i}.weights'][s.head_exp(ds)]
            else: w=W[f'{hp}.{i}.weight']
            return x@w.T+W[f'{hp}.{i}.bias']
        y=hl(4,silu(hl(2,silu(hl(0,x[:,0])))))
        keep('node_energies',y[:,0])
        return y.sum()
    def head_exp(s,ds):
        h=s.heads['energyandforcehead']; mp=h.get('dataset_mapping') or {k:k for k in h['dataset_names']}
        return sorted(set(mp.values())).index(mp[ds])
