; made of launcher.c (sha256 7a77968e164549632244a02eac58764f2d2c1841f2f9c030e06895264c65359e) by scripts/make_launcher
%struct.Team = type { ptr, ptr, ptr, ptr, ptr, ptr, ptr }
%struct.ParallelGroup = type { ptr, i32 }
%struct.timespec = type { i64, i64 }
%struct.__sigset_t = type { [16 x i64] }
%struct.Worker = type { i32, i32, i32, i32, ptr, ptr, i64, %union.sem_t, [56 x i8] }
%union.sem_t = type { i64, [24 x i8] }
%struct.Dl_info = type { ptr, ptr, ptr, ptr }
%struct.Loop = type { ptr, ptr, ptr, i64, i32, i32, i32, [1024 x i8] }

@convtvm_team = local_unnamed_addr global %struct.Team { ptr @launch_on_team, ptr @launch_shared, ptr null, ptr null, ptr null, ptr null, ptr null }, align 8
@convtvm_launcher = local_unnamed_addr global { ptr, i32, [4 x i8] } { ptr @launch_shared, i32 0, [4 x i8] zeroinitializer }, align 8
@__TVMBackendParallelLaunch = hidden local_unnamed_addr global ptr @launch, align 8
@current = internal global ptr null, align 8
@.str = private unnamed_addr constant [16 x i8] c"CONVTVM_SPIN_US\00", align 1
@.str.1 = private unnamed_addr constant [8 x i8] c"convtvm\00", align 1
@__const.alone.group = private unnamed_addr constant { ptr, i32, [4 x i8] } { ptr null, i32 1, [4 x i8] zeroinitializer }, align 8
@launch_on_team.taken = internal global i32 0, align 4
@avoided = internal unnamed_addr global i64 0, align 8
@judge.patience = internal unnamed_addr global i64 0, align 8
@.str.2 = private unnamed_addr constant [16 x i8] c"CONVTVM_TEAM_US\00", align 1
@avoid_for = internal unnamed_addr global i64 0, align 8
@convtvm_threads = external local_unnamed_addr constant i32, align 4

define internal i32 @launch_on_team(i32 noundef %0, ptr noundef %1, ptr noundef %2) {
  %4 = alloca %struct.ParallelGroup, align 8
  %5 = alloca %struct.ParallelGroup, align 8
  %6 = alloca %struct.timespec, align 8
  %7 = alloca %struct.ParallelGroup, align 8
  %8 = alloca [64 x i64], align 16
  %9 = load ptr, ptr getelementptr inbounds nuw (i8, ptr @convtvm_team, i64 48), align 8
  %10 = tail call i32 %9()
  %11 = tail call noundef i32 @llvm.smin.i32(i32 %0, i32 %10)
  %12 = icmp slt i32 %11, 2
  br i1 %12, label %17, label %13

13:                                               ; preds = %3
  %14 = load ptr, ptr getelementptr inbounds nuw (i8, ptr @convtvm_team, i64 40), align 8
  %15 = tail call i32 %14()
  %16 = icmp eq i32 %15, 0
  br i1 %16, label %19, label %17

17:                                               ; preds = %13, %3
  call void @llvm.memcpy.p0.p0.i64(ptr noundef nonnull align 8 dereferenceable(16) %7, ptr noundef nonnull align 8 dereferenceable(16) @__const.alone.group, i64 16, i1 false)
  %18 = call i32 %1(i32 noundef 0, ptr noundef nonnull %7, ptr noundef %2)
  br label %74

19:                                               ; preds = %13
  %20 = load ptr, ptr getelementptr inbounds nuw (i8, ptr @convtvm_team, i64 16), align 8
  %21 = icmp eq ptr %20, null
  br i1 %21, label %31, label %22

22:                                               ; preds = %19
  %23 = call i32 @clock_gettime(i32 noundef 1, ptr noundef nonnull %6)
  %24 = load i64, ptr %6, align 8
  %25 = mul nsw i64 %24, 1000000000
  %26 = getelementptr inbounds nuw i8, ptr %6, i64 8
  %27 = load i64, ptr %26, align 8
  %28 = add nsw i64 %25, %27
  %29 = load atomic i64, ptr @avoided seq_cst, align 8
  %30 = icmp slt i64 %28, %29
  br i1 %30, label %31, label %34

31:                                               ; preds = %22, %19
  %32 = load ptr, ptr getelementptr inbounds nuw (i8, ptr @convtvm_team, i64 8), align 8
  %33 = call i32 %32(i32 noundef %11, ptr noundef %1, ptr noundef %2)
  br label %74

34:                                               ; preds = %22
  %35 = call i32 @sched_getaffinity(i32 noundef 0, i64 noundef 512, ptr noundef nonnull %8)
  %36 = icmp eq i32 %35, 0
  br i1 %36, label %39, label %37

37:                                               ; preds = %34
  call void @llvm.memcpy.p0.p0.i64(ptr noundef nonnull align 8 dereferenceable(16) %5, ptr noundef nonnull align 8 dereferenceable(16) @__const.alone.group, i64 16, i1 false)
  %38 = call i32 %1(i32 noundef 0, ptr noundef nonnull %5, ptr noundef %2)
  br label %72

39:                                               ; preds = %34, %39
  %40 = phi i64 [ %47, %39 ], [ 0, %34 ]
  %41 = phi i32 [ %46, %39 ], [ 0, %34 ]
  %42 = getelementptr inbounds nuw i64, ptr %8, i64 %40
  %43 = load i64, ptr %42, align 8
  %44 = call range(i64 0, 65) i64 @llvm.ctpop.i64(i64 %43)
  %45 = trunc nuw nsw i64 %44 to i32
  %46 = add nuw nsw i32 %41, %45
  %47 = add nuw nsw i64 %40, 1
  %48 = icmp eq i64 %47, 64
  br i1 %48, label %49, label %39

49:                                               ; preds = %39
  %50 = call i32 @llvm.smin.i32(i32 %46, i32 %11)
  %51 = call i32 @llvm.smin.i32(i32 %50, i32 1024)
  %52 = atomicrmw add ptr @launch_on_team.taken, i32 %51 seq_cst, align 4
  %53 = sub nsw i32 %46, %52
  %54 = icmp slt i32 %53, 1
  br i1 %54, label %55, label %58

55:                                               ; preds = %49
  %56 = add nsw i32 %51, -1
  %57 = atomicrmw sub ptr @launch_on_team.taken, i32 %56 seq_cst, align 4
  br label %65

58:                                               ; preds = %49
  %59 = call noundef i32 @llvm.smin.i32(i32 %51, i32 %53)
  %60 = sub nsw i32 %51, %59
  %61 = atomicrmw sub ptr @launch_on_team.taken, i32 %60 seq_cst, align 4
  %62 = icmp sgt i32 %59, 1
  br i1 %62, label %63, label %65

63:                                               ; preds = %58
  %64 = call fastcc i32 @run_on_team(i32 noundef %59, ptr noundef %1, ptr noundef %2)
  br label %68

65:                                               ; preds = %55, %58
  %66 = phi i32 [ 1, %55 ], [ %59, %58 ]
  call void @llvm.memcpy.p0.p0.i64(ptr noundef nonnull align 8 dereferenceable(16) %4, ptr noundef nonnull align 8 dereferenceable(16) @__const.alone.group, i64 16, i1 false)
  %67 = call i32 %1(i32 noundef 0, ptr noundef nonnull %4, ptr noundef %2)
  br label %68

68:                                               ; preds = %65, %63
  %69 = phi i32 [ %59, %63 ], [ %66, %65 ]
  %70 = phi i32 [ %64, %63 ], [ %67, %65 ]
  %71 = atomicrmw sub ptr @launch_on_team.taken, i32 %69 seq_cst, align 4
  br label %72

72:                                               ; preds = %68, %37
  %73 = phi i32 [ %38, %37 ], [ %70, %68 ]
  br label %74

74:                                               ; preds = %72, %31, %17
  %75 = phi i32 [ %18, %17 ], [ %33, %31 ], [ %73, %72 ]
  ret i32 %75
}

define internal i32 @launch_shared(i32 noundef %0, ptr noundef %1, ptr noundef %2) {
  %4 = alloca %struct.ParallelGroup, align 8
  %5 = alloca [64 x i64], align 16
  %6 = alloca %struct.__sigset_t, align 8
  %7 = alloca %struct.__sigset_t, align 8
  %8 = alloca [64 x i64], align 16
  %9 = icmp sgt i32 %0, 1
  br i1 %9, label %10, label %256

10:                                               ; preds = %3
  %11 = load atomic i64, ptr @current acquire, align 8
  %12 = inttoptr i64 %11 to ptr
  %13 = icmp eq i64 %11, 0
  br i1 %13, label %21, label %14

14:                                               ; preds = %10
  %15 = getelementptr inbounds nuw i8, ptr %12, i64 16
  %16 = load i32, ptr %15, align 16
  %17 = icmp eq i32 %16, 0
  br i1 %17, label %41, label %18

18:                                               ; preds = %14
  %19 = tail call i32 @getpid()
  %20 = icmp eq i32 %16, %19
  br i1 %20, label %41, label %21

21:                                               ; preds = %18, %10
  %22 = tail call ptr @mmap(ptr noundef null, i64 noundef 131584, i32 noundef 3, i32 noundef 34, i32 noundef -1, i64 noundef 0)
  %23 = icmp eq ptr %22, inttoptr (i64 -1 to ptr)
  br i1 %23, label %256, label %24

24:                                               ; preds = %21
  %25 = tail call i32 @madvise(ptr noundef %22, i64 noundef 131584, i32 noundef 18)
  %26 = icmp eq i32 %25, 0
  br i1 %26, label %30, label %27

27:                                               ; preds = %24
  %28 = tail call i32 @getpid()
  %29 = getelementptr inbounds nuw i8, ptr %22, i64 16
  store i32 %28, ptr %29, align 16
  br label %30

30:                                               ; preds = %27, %24
  %31 = ptrtoint ptr %22 to i64
  %32 = cmpxchg ptr @current, i64 %11, i64 %31 seq_cst seq_cst, align 8
  %33 = extractvalue { i64, i1 } %32, 1
  br i1 %33, label %38, label %34

34:                                               ; preds = %30
  %35 = extractvalue { i64, i1 } %32, 0
  %36 = inttoptr i64 %35 to ptr
  %37 = tail call i32 @munmap(ptr noundef %22, i64 noundef 131584)
  br label %38

38:                                               ; preds = %34, %30
  %39 = phi ptr [ %36, %34 ], [ %22, %30 ]
  %40 = icmp eq ptr %39, null
  br i1 %40, label %256, label %41

41:                                               ; preds = %14, %18, %38
  %42 = phi ptr [ %39, %38 ], [ %12, %18 ], [ %12, %14 ]
  %43 = load atomic i32, ptr %42 monotonic, align 128
  %44 = icmp eq i32 %43, 0
  br i1 %44, label %45, label %256

45:                                               ; preds = %41
  %46 = atomicrmw xchg ptr %42, i32 1 acquire, align 128
  %47 = icmp eq i32 %46, 0
  br i1 %47, label %48, label %256

48:                                               ; preds = %45
  %49 = call i32 @sched_getaffinity(i32 noundef 0, i64 noundef 512, ptr noundef nonnull %8)
  %50 = icmp eq i32 %49, 0
  br i1 %50, label %52, label %51

51:                                               ; preds = %48
  br label %254

52:                                               ; preds = %48
  %53 = getelementptr inbounds nuw i8, ptr %42, i64 32
  %54 = call i32 @bcmp(ptr noundef nonnull dereferenceable(512) %8, ptr noundef nonnull dereferenceable(512) %53, i64 512)
  %55 = icmp eq i32 %54, 0
  br i1 %55, label %56, label %59

56:                                               ; preds = %52
  %57 = getelementptr inbounds nuw i8, ptr %42, i64 4
  %58 = load i32, ptr %57, align 4
  br label %88

59:                                               ; preds = %52
  call void @llvm.memcpy.p0.p0.i64(ptr noundef nonnull align 32 dereferenceable(512) %53, ptr noundef nonnull align 16 dereferenceable(512) %8, i64 512, i1 false)
  br label %60

60:                                               ; preds = %60, %59
  %61 = phi i64 [ 0, %59 ], [ %68, %60 ]
  %62 = phi i32 [ 0, %59 ], [ %67, %60 ]
  %63 = getelementptr inbounds nuw i64, ptr %8, i64 %61
  %64 = load i64, ptr %63, align 8
  %65 = call range(i64 0, 65) i64 @llvm.ctpop.i64(i64 %64)
  %66 = trunc nuw nsw i64 %65 to i32
  %67 = add nuw nsw i32 %62, %66
  %68 = add nuw nsw i64 %61, 1
  %69 = icmp eq i64 %68, 64
  br i1 %69, label %70, label %60

70:                                               ; preds = %60
  %71 = getelementptr inbounds nuw i8, ptr %42, i64 8
  store i32 %67, ptr %71, align 8
  %72 = getelementptr inbounds nuw i8, ptr %42, i64 4
  %73 = load i32, ptr %72, align 4
  %74 = icmp sgt i32 %73, 0
  br i1 %74, label %75, label %88

75:                                               ; preds = %70
  %76 = getelementptr inbounds nuw i8, ptr %42, i64 640
  br label %77

77:                                               ; preds = %77, %75
  %78 = phi i64 [ 0, %75 ], [ %84, %77 ]
  %79 = getelementptr inbounds nuw [1023 x %struct.Worker], ptr %76, i64 0, i64 %78
  %80 = getelementptr inbounds nuw i8, ptr %79, i64 32
  %81 = load i64, ptr %80, align 32
  %82 = call i32 @pthread_setaffinity_np(i64 noundef %81, i64 noundef 512, ptr noundef nonnull %8)
  %83 = getelementptr inbounds nuw i8, ptr %79, i64 12
  store i32 0, ptr %83, align 4
  %84 = add nuw nsw i64 %78, 1
  %85 = load i32, ptr %72, align 4
  %86 = sext i32 %85 to i64
  %87 = icmp slt i64 %84, %86
  br i1 %87, label %77, label %88

88:                                               ; preds = %77, %70, %56
  %89 = phi i32 [ %58, %56 ], [ %73, %70 ], [ %85, %77 ]
  %90 = getelementptr inbounds nuw i8, ptr %42, i64 8
  %91 = load i32, ptr %90, align 8
  %92 = call noundef i32 @llvm.smin.i32(i32 %0, i32 %91)
  %93 = call noundef i32 @llvm.smin.i32(i32 %92, i32 1024)
  %94 = getelementptr inbounds nuw i8, ptr %42, i64 4
  %95 = add nsw i32 %89, 1
  %96 = icmp slt i32 %95, %93
  br i1 %96, label %97, label %155

97:                                               ; preds = %88
  %98 = getelementptr inbounds nuw i8, ptr %42, i64 12
  %99 = getelementptr inbounds nuw i8, ptr %42, i64 576
  %100 = getelementptr inbounds nuw i8, ptr %42, i64 24
  %101 = getelementptr inbounds nuw i8, ptr %42, i64 640
  %102 = load i32, ptr %98, align 4
  %103 = icmp eq i32 %102, 0
  br i1 %103, label %111, label %107

104:                                              ; preds = %151
  %105 = load i32, ptr %98, align 4
  %106 = icmp eq i32 %105, 0
  br i1 %106, label %111, label %107

107:                                              ; preds = %104, %97
  %108 = phi i32 [ %95, %97 ], [ %153, %104 ]
  %109 = phi i32 [ %102, %97 ], [ %105, %104 ]
  %110 = add nsw i32 %109, -1
  store i32 %110, ptr %98, align 4
  br label %155

111:                                              ; preds = %97, %104
  %112 = phi i32 [ %152, %104 ], [ %89, %97 ]
  %113 = icmp eq i32 %112, 0
  br i1 %113, label %114, label %123

114:                                              ; preds = %111
  %115 = call i32 @stays()
  %116 = icmp eq i32 %115, 0
  br i1 %116, label %149, label %117

117:                                              ; preds = %114
  %118 = call i32 @sem_init(ptr noundef nonnull %99, i32 noundef 0, i32 noundef 0)
  %119 = icmp eq i32 %118, 0
  br i1 %119, label %120, label %149

120:                                              ; preds = %117
  %121 = call fastcc i64 @duration(ptr noundef nonnull @.str, i64 noundef 200)
  store i64 %121, ptr %100, align 8
  %122 = load i32, ptr %94, align 4
  br label %123

123:                                              ; preds = %120, %111
  %124 = phi i32 [ %122, %120 ], [ %112, %111 ]
  %125 = sext i32 %124 to i64
  %126 = getelementptr inbounds [1023 x %struct.Worker], ptr %101, i64 0, i64 %125
  call void @llvm.memset.p0.i64(ptr noundef nonnull align 128 dereferenceable(128) %126, i8 0, i64 128, i1 false)
  %127 = getelementptr inbounds nuw i8, ptr %126, i64 24
  store ptr %42, ptr %127, align 8
  %128 = load i32, ptr %94, align 4
  %129 = add nsw i32 %128, 1
  %130 = getelementptr inbounds nuw i8, ptr %126, i64 4
  store i32 %129, ptr %130, align 4
  %131 = getelementptr inbounds nuw i8, ptr %126, i64 40
  %132 = call i32 @sem_init(ptr noundef nonnull %131, i32 noundef 0, i32 noundef 0)
  %133 = icmp eq i32 %132, 0
  br i1 %133, label %134, label %149

134:                                              ; preds = %123
  %135 = call i32 @sigfillset(ptr noundef nonnull %6)
  %136 = call i32 @pthread_sigmask(i32 noundef 2, ptr noundef nonnull %6, ptr noundef nonnull %7)
  %137 = getelementptr inbounds nuw i8, ptr %126, i64 32
  %138 = call i32 @pthread_create(ptr noundef nonnull %137, ptr noundef null, ptr noundef nonnull @work, ptr noundef nonnull %126)
  %139 = call i32 @pthread_sigmask(i32 noundef 2, ptr noundef nonnull %7, ptr noundef null)
  %140 = icmp eq i32 %138, 0
  br i1 %140, label %142, label %141

141:                                              ; preds = %134
  br label %149

142:                                              ; preds = %134
  %143 = load i64, ptr %137, align 32
  %144 = call i32 @pthread_setname_np(i64 noundef %143, ptr noundef nonnull @.str.1)
  %145 = load i64, ptr %137, align 32
  %146 = call i32 @pthread_detach(i64 noundef %145)
  %147 = load i32, ptr %94, align 4
  %148 = add nsw i32 %147, 1
  store i32 %148, ptr %94, align 4
  br label %151

149:                                              ; preds = %141, %123, %117, %114
  store i32 1000, ptr %98, align 4
  %150 = load i32, ptr %94, align 4
  br label %151

151:                                              ; preds = %149, %142
  %152 = phi i32 [ %148, %142 ], [ %150, %149 ]
  %153 = add nsw i32 %152, 1
  %154 = icmp slt i32 %153, %93
  br i1 %154, label %104, label %155

155:                                              ; preds = %151, %88, %107
  %156 = phi i32 [ %108, %107 ], [ %95, %88 ], [ %153, %151 ]
  %157 = call noundef i32 @llvm.smin.i32(i32 %93, i32 %156)
  %158 = icmp sgt i32 %157, 1
  br i1 %158, label %159, label %254

159:                                              ; preds = %155
  %160 = getelementptr inbounds nuw i8, ptr %42, i64 640
  %161 = getelementptr inbounds nuw i8, ptr %42, i64 544
  store ptr %1, ptr %161, align 32
  %162 = getelementptr inbounds nuw i8, ptr %42, i64 552
  store ptr %2, ptr %162, align 8
  %163 = getelementptr inbounds nuw i8, ptr %42, i64 568
  store i32 %157, ptr %163, align 8
  %164 = add nsw i32 %157, -1
  %165 = zext nneg i32 %164 to i64
  br label %171

166:                                              ; preds = %201
  %167 = getelementptr inbounds nuw i8, ptr %42, i64 560
  %168 = call i32 %1(i32 noundef 0, ptr noundef nonnull %167, ptr noundef %2)
  %169 = add nsw i32 %157, -2
  %170 = zext nneg i32 %169 to i64
  br label %208

171:                                              ; preds = %201, %159
  %172 = phi i64 [ 0, %159 ], [ %202, %201 ]
  %173 = getelementptr inbounds nuw %struct.Worker, ptr %160, i64 %172
  %174 = getelementptr inbounds nuw i8, ptr %173, i64 8
  store i32 0, ptr %174, align 8
  %175 = atomicrmw xchg ptr %173, i32 2 seq_cst, align 128
  %176 = icmp eq i32 %175, 1
  br i1 %176, label %177, label %201

177:                                              ; preds = %171
  %178 = call i32 @sched_getcpu()
  %179 = icmp ult i32 %178, 4096
  br i1 %179, label %180, label %198

180:                                              ; preds = %177
  %181 = getelementptr inbounds nuw i8, ptr %173, i64 12
  %182 = load i32, ptr %181, align 4
  %183 = add nuw nsw i32 %178, 1
  %184 = icmp eq i32 %182, %183
  br i1 %184, label %198, label %185

185:                                              ; preds = %180
  call void @llvm.memcpy.p0.p0.i64(ptr noundef nonnull align 16 dereferenceable(512) %5, ptr noundef nonnull readonly align 32 dereferenceable(512) %53, i64 512, i1 false)
  %186 = and i32 %178, 63
  %187 = zext nneg i32 %186 to i64
  %188 = shl nuw i64 1, %187
  %189 = xor i64 %188, -1
  %190 = lshr i32 %178, 6
  %191 = zext nneg i32 %190 to i64
  %192 = getelementptr inbounds nuw [64 x i64], ptr %5, i64 0, i64 %191
  %193 = load i64, ptr %192, align 8
  %194 = and i64 %193, %189
  store i64 %194, ptr %192, align 8
  %195 = getelementptr inbounds nuw i8, ptr %173, i64 32
  %196 = load i64, ptr %195, align 32
  %197 = call i32 @pthread_setaffinity_np(i64 noundef %196, i64 noundef 512, ptr noundef nonnull %5)
  store i32 %183, ptr %181, align 4
  br label %198

198:                                              ; preds = %185, %180, %177
  %199 = getelementptr inbounds nuw i8, ptr %173, i64 40
  %200 = call i32 @sem_post(ptr noundef nonnull %199)
  br label %201

201:                                              ; preds = %198, %171
  %202 = add nuw nsw i64 %172, 1
  %203 = icmp eq i64 %202, %165
  br i1 %203, label %166, label %171

204:                                              ; preds = %219
  %205 = getelementptr inbounds nuw i8, ptr %42, i64 24
  %206 = getelementptr inbounds nuw i8, ptr %42, i64 576
  %207 = icmp ne ptr @TVMFFIErrorSetRaised, null
  br label %223

208:                                              ; preds = %219, %166
  %209 = phi i64 [ %170, %166 ], [ %221, %219 ]
  %210 = phi i32 [ %168, %166 ], [ %220, %219 ]
  %211 = getelementptr inbounds nuw %struct.Worker, ptr %160, i64 %209
  %212 = cmpxchg ptr %211, i32 2, i32 0 seq_cst seq_cst, align 4
  %213 = extractvalue { i32, i1 } %212, 1
  br i1 %213, label %214, label %219

214:                                              ; preds = %208
  %215 = trunc i64 %209 to i32
  %216 = add i32 %215, 1
  %217 = call i32 %1(i32 noundef %216, ptr noundef nonnull %167, ptr noundef %2)
  %218 = or i32 %217, %210
  br label %219

219:                                              ; preds = %214, %208
  %220 = phi i32 [ %218, %214 ], [ %210, %208 ]
  %221 = add nsw i64 %209, -1
  %222 = icmp sgt i64 %209, 0
  br i1 %222, label %208, label %204

223:                                              ; preds = %249, %204
  %224 = phi i64 [ 0, %204 ], [ %252, %249 ]
  %225 = phi i32 [ %220, %204 ], [ %251, %249 ]
  %226 = getelementptr inbounds nuw %struct.Worker, ptr %160, i64 %224
  %227 = load i64, ptr %205, align 8
  %228 = call fastcc i32 @left(ptr noundef nonnull %226, i32 noundef 3, i64 noundef %227)
  %229 = icmp eq i32 %228, 0
  br i1 %229, label %230, label %236

230:                                              ; preds = %223
  %231 = cmpxchg ptr %226, i32 3, i32 4 seq_cst seq_cst, align 4
  %232 = extractvalue { i32, i1 } %231, 1
  br i1 %232, label %233, label %236

233:                                              ; preds = %230, %233
  %234 = call i32 @sem_wait(ptr noundef nonnull %206)
  %235 = icmp eq i32 %234, 0
  br i1 %235, label %236, label %233

236:                                              ; preds = %233, %230, %223
  %237 = getelementptr inbounds nuw i8, ptr %226, i64 8
  %238 = load i32, ptr %237, align 8
  %239 = icmp eq i32 %238, 0
  br i1 %239, label %249, label %240

240:                                              ; preds = %236
  %241 = getelementptr inbounds nuw i8, ptr %226, i64 16
  %242 = load ptr, ptr %241, align 16
  %243 = icmp ne ptr %242, null
  %244 = and i1 %207, %243
  br i1 %244, label %245, label %247

245:                                              ; preds = %240
  call void @TVMFFIErrorSetRaised(ptr noundef nonnull %242)
  %246 = load i32, ptr %237, align 8
  br label %247

247:                                              ; preds = %245, %240
  %248 = phi i32 [ %246, %245 ], [ %238, %240 ]
  store ptr null, ptr %241, align 16
  br label %249

249:                                              ; preds = %247, %236
  %250 = phi i32 [ %248, %247 ], [ 0, %236 ]
  %251 = or i32 %250, %225
  %252 = add nuw nsw i64 %224, 1
  %253 = icmp eq i64 %252, %165
  br i1 %253, label %255, label %223

254:                                              ; preds = %155, %51
  store atomic i32 0, ptr %42 release, align 128
  br label %256

255:                                              ; preds = %249
  store atomic i32 0, ptr %42 release, align 128
  br label %258

256:                                              ; preds = %21, %3, %38, %45, %41, %254
  call void @llvm.memcpy.p0.p0.i64(ptr noundef nonnull align 8 dereferenceable(16) %4, ptr noundef nonnull align 8 dereferenceable(16) @__const.alone.group, i64 16, i1 false)
  %257 = call i32 %1(i32 noundef 0, ptr noundef nonnull %4, ptr noundef %2)
  br label %258

258:                                              ; preds = %255, %256
  %259 = phi i32 [ %257, %256 ], [ %251, %255 ]
  ret i32 %259
}

define internal i32 @launch(ptr noundef %0, ptr noundef %1, i32 noundef %2) {
  %4 = load i32, ptr getelementptr inbounds nuw (i8, ptr @convtvm_launcher, i64 8), align 8
  %5 = icmp eq i32 %4, 0
  %6 = load i32, ptr @convtvm_threads, align 4
  %7 = select i1 %5, i32 %6, i32 %4
  %8 = load ptr, ptr @convtvm_launcher, align 8
  %9 = icmp sgt i32 %2, 0
  %10 = select i1 %9, i32 %2, i32 %7
  %11 = tail call i32 %8(i32 noundef %10, ptr noundef %0, ptr noundef %1)
  ret i32 %11
}

declare i32 @getpid() local_unnamed_addr

declare ptr @mmap(ptr noundef, i64 noundef, i32 noundef, i32 noundef, i32 noundef, i64 noundef) local_unnamed_addr

declare i32 @madvise(ptr noundef, i64 noundef, i32 noundef) local_unnamed_addr

declare i32 @munmap(ptr noundef, i64 noundef) local_unnamed_addr

declare i32 @sched_getaffinity(i32 noundef, i64 noundef, ptr noundef) local_unnamed_addr

declare void @llvm.memcpy.p0.p0.i64(ptr noalias writeonly, ptr noalias readonly, i64, i1 immarg)

declare i32 @pthread_setaffinity_np(i64 noundef, i64 noundef, ptr noundef) local_unnamed_addr

declare i64 @llvm.ctpop.i64(i64)

define internal range(i32 0, 2) i32 @stays() {
  %1 = alloca %struct.Dl_info, align 8
  %2 = call i32 @dladdr(ptr noundef nonnull @stays, ptr noundef nonnull %1)
  %3 = icmp eq i32 %2, 0
  br i1 %3, label %9, label %4

4:                                                ; preds = %0
  %5 = load ptr, ptr %1, align 8
  %6 = call ptr @dlopen(ptr noundef %5, i32 noundef 4102)
  %7 = icmp ne ptr %6, null
  %8 = zext i1 %7 to i32
  br label %9

9:                                                ; preds = %0, %4
  %10 = phi i32 [ %8, %4 ], [ 0, %0 ]
  ret i32 %10
}

declare i32 @sem_init(ptr noundef, i32 noundef, i32 noundef) local_unnamed_addr

define internal fastcc range(i64 0, 1000000001) i64 @duration(ptr noundef readonly %0, i64 noundef range(i64 200, 501) %1) unnamed_addr {
  %3 = tail call ptr @getenv(ptr noundef %0)
  %4 = icmp eq ptr %3, null
  br i1 %4, label %10, label %5

5:                                                ; preds = %2
  %6 = load i8, ptr %3, align 1
  %7 = icmp eq i8 %6, 0
  br i1 %7, label %10, label %8

8:                                                ; preds = %5
  %9 = tail call i64 @atoll(ptr noundef nonnull %3)
  br label %10

10:                                               ; preds = %8, %5, %2
  %11 = phi i64 [ %9, %8 ], [ %1, %5 ], [ %1, %2 ]
  %12 = tail call i64 @llvm.smin.i64(i64 %11, i64 1000000)
  %13 = tail call i64 @llvm.smax.i64(i64 %12, i64 0)
  %14 = mul nuw nsw i64 %13, 1000
  ret i64 %14
}

declare void @llvm.memset.p0.i64(ptr writeonly, i8, i64, i1 immarg)

declare i32 @sigfillset(ptr noundef) local_unnamed_addr

declare i32 @pthread_sigmask(i32 noundef, ptr noundef, ptr noundef) local_unnamed_addr

declare i32 @pthread_create(ptr noundef, ptr noundef, ptr noundef, ptr noundef) local_unnamed_addr

define internal noundef ptr @work(ptr noundef %0) {
  %2 = getelementptr inbounds nuw i8, ptr %0, i64 24
  %3 = load ptr, ptr %2, align 8
  %4 = getelementptr inbounds nuw i8, ptr %3, i64 24
  %5 = getelementptr inbounds nuw i8, ptr %0, i64 40
  %6 = getelementptr inbounds nuw i8, ptr %3, i64 544
  %7 = getelementptr inbounds nuw i8, ptr %0, i64 4
  %8 = getelementptr inbounds nuw i8, ptr %3, i64 560
  %9 = getelementptr inbounds nuw i8, ptr %3, i64 552
  %10 = getelementptr inbounds nuw i8, ptr %0, i64 8
  %11 = icmp ne ptr @TVMFFIErrorMoveFromRaised, null
  %12 = getelementptr inbounds nuw i8, ptr %0, i64 16
  %13 = getelementptr inbounds nuw i8, ptr %3, i64 576
  br label %14

14:                                               ; preds = %42, %1
  %15 = load i64, ptr %4, align 8
  %16 = tail call fastcc i32 @left(ptr noundef %0, i32 noundef 0, i64 noundef %15)
  %17 = icmp eq i32 %16, 0
  br i1 %17, label %18, label %28

18:                                               ; preds = %14
  %19 = cmpxchg ptr %0, i32 0, i32 1 seq_cst seq_cst, align 4
  %20 = extractvalue { i32, i1 } %19, 1
  br i1 %20, label %21, label %28

21:                                               ; preds = %18
  %22 = load atomic i32, ptr %0 seq_cst, align 128
  %23 = icmp eq i32 %22, 1
  br i1 %23, label %24, label %28

24:                                               ; preds = %21, %24
  %25 = tail call i32 @sem_wait(ptr noundef nonnull %5)
  %26 = load atomic i32, ptr %0 seq_cst, align 128
  %27 = icmp eq i32 %26, 1
  br i1 %27, label %24, label %28

28:                                               ; preds = %24, %21, %18, %14
  %29 = cmpxchg ptr %0, i32 2, i32 3 seq_cst seq_cst, align 4
  %30 = extractvalue { i32, i1 } %29, 1
  br i1 %30, label %31, label %42

31:                                               ; preds = %28
  %32 = load ptr, ptr %6, align 32
  %33 = load i32, ptr %7, align 4
  %34 = load ptr, ptr %9, align 8
  %35 = tail call i32 %32(i32 noundef %33, ptr noundef nonnull %8, ptr noundef %34)
  store i32 %35, ptr %10, align 8
  %36 = icmp ne i32 %35, 0
  %37 = and i1 %11, %36
  br i1 %37, label %38, label %39

38:                                               ; preds = %31
  tail call void @TVMFFIErrorMoveFromRaised(ptr noundef nonnull %12)
  br label %39

39:                                               ; preds = %38, %31
  %40 = atomicrmw xchg ptr %0, i32 0 seq_cst, align 128
  %41 = icmp eq i32 %40, 4
  br i1 %41, label %43, label %42

42:                                               ; preds = %39, %43, %28
  br label %14

43:                                               ; preds = %39
  %44 = tail call i32 @sem_post(ptr noundef nonnull %13)
  br label %42
}

declare i32 @pthread_setname_np(i64 noundef, ptr noundef) local_unnamed_addr

declare i32 @pthread_detach(i64 noundef) local_unnamed_addr

declare i32 @dladdr(ptr noundef, ptr noundef) local_unnamed_addr

declare ptr @dlopen(ptr noundef, i32 noundef) local_unnamed_addr

declare noundef ptr @getenv(ptr noundef) local_unnamed_addr

declare i64 @atoll(ptr noundef) local_unnamed_addr

define internal fastcc range(i32 0, 2) i32 @left(ptr noundef readonly %0, i32 noundef range(i32 0, 4) %1, i64 noundef %2) unnamed_addr {
  %4 = alloca %struct.timespec, align 8
  %5 = getelementptr inbounds nuw i8, ptr %4, i64 8
  br label %6

6:                                                ; preds = %15, %3
  %7 = phi i64 [ 0, %3 ], [ %23, %15 ]
  br label %8

8:                                                ; preds = %6, %12
  %9 = phi i32 [ 0, %6 ], [ %13, %12 ]
  %10 = load atomic i32, ptr %0 acquire, align 4
  %11 = icmp eq i32 %10, %1
  br i1 %11, label %12, label %25

12:                                               ; preds = %8
  call void @convtvm_relax()
  %13 = add nuw nsw i32 %9, 1
  %14 = icmp eq i32 %13, 32
  br i1 %14, label %15, label %8

15:                                               ; preds = %12
  %16 = call i32 @clock_gettime(i32 noundef 1, ptr noundef nonnull %4)
  %17 = load i64, ptr %4, align 8
  %18 = mul nsw i64 %17, 1000000000
  %19 = load i64, ptr %5, align 8
  %20 = add nsw i64 %18, %19
  %21 = icmp eq i64 %7, 0
  %22 = add nsw i64 %20, %2
  %23 = select i1 %21, i64 %22, i64 %7
  %24 = icmp slt i64 %20, %23
  br i1 %24, label %6, label %25

25:                                               ; preds = %15, %8
  %26 = phi i32 [ 1, %8 ], [ 0, %15 ]
  ret i32 %26
}

declare i32 @sem_wait(ptr noundef) local_unnamed_addr

declare extern_weak void @TVMFFIErrorMoveFromRaised(ptr noundef)

declare i32 @sem_post(ptr noundef) local_unnamed_addr

declare void @convtvm_relax() local_unnamed_addr

declare i32 @clock_gettime(i32 noundef, ptr noundef) local_unnamed_addr

declare i32 @sched_getcpu() local_unnamed_addr

declare extern_weak void @TVMFFIErrorSetRaised(ptr noundef)

define internal fastcc i32 @run_on_team(i32 noundef range(i32 2, -2147483648) %0, ptr noundef %1, ptr noundef %2) unnamed_addr {
  %4 = alloca %struct.timespec, align 8
  %5 = alloca %struct.Loop, align 8
  store ptr %1, ptr %5, align 8
  %6 = getelementptr inbounds nuw i8, ptr %5, i64 8
  store ptr %2, ptr %6, align 8
  %7 = getelementptr inbounds nuw i8, ptr %5, i64 16
  store ptr null, ptr %7, align 8
  %8 = getelementptr inbounds nuw i8, ptr %5, i64 32
  store i32 %0, ptr %8, align 8
  %9 = getelementptr inbounds nuw i8, ptr %5, i64 40
  store atomic i32 0, ptr %9 seq_cst, align 8
  %10 = getelementptr inbounds nuw i8, ptr %5, i64 36
  store i32 0, ptr %10, align 4
  %11 = getelementptr inbounds nuw i8, ptr %5, i64 44
  %12 = zext nneg i32 %0 to i64
  call void @llvm.memset.p0.i64(ptr noundef nonnull align 4 dereferenceable(1) %11, i8 0, i64 %12, i1 false)
  %13 = load ptr, ptr getelementptr inbounds nuw (i8, ptr @convtvm_team, i64 16), align 8
  call void %13(ptr noundef nonnull @take_part, ptr noundef nonnull %5, i32 noundef 0, i32 noundef 0)
  %14 = call i32 @clock_gettime(i32 noundef 1, ptr noundef nonnull %4)
  %15 = load i64, ptr %4, align 8
  %16 = mul nsw i64 %15, 1000000000
  %17 = getelementptr inbounds nuw i8, ptr %4, i64 8
  %18 = load i64, ptr %17, align 8
  %19 = add nsw i64 %16, %18
  %20 = load atomic i64, ptr @judge.patience seq_cst, align 8
  %21 = icmp eq i64 %20, 0
  br i1 %21, label %22, label %25

22:                                               ; preds = %3
  %23 = call fastcc i64 @duration(ptr noundef nonnull @.str.2, i64 noundef 500)
  %24 = add nuw nsw i64 %23, 1
  store atomic i64 %24, ptr @judge.patience seq_cst, align 8
  br label %25

25:                                               ; preds = %22, %3
  %26 = load i32, ptr %10, align 4
  %27 = icmp eq i32 %26, 0
  br i1 %27, label %34, label %28

28:                                               ; preds = %25
  %29 = getelementptr inbounds nuw i8, ptr %5, i64 24
  %30 = load i64, ptr %29, align 8
  %31 = sub nsw i64 %19, %30
  %32 = load atomic i64, ptr @judge.patience seq_cst, align 8
  %33 = icmp slt i64 %31, %32
  br i1 %33, label %34, label %38

34:                                               ; preds = %28, %25
  %35 = load atomic i64, ptr @avoid_for seq_cst, align 8
  %36 = icmp eq i64 %35, 0
  br i1 %36, label %45, label %37

37:                                               ; preds = %34
  store atomic i64 0, ptr @avoid_for seq_cst, align 8
  br label %45

38:                                               ; preds = %28
  %39 = load atomic i64, ptr @avoid_for seq_cst, align 8
  %40 = shl nsw i64 %39, 1
  %41 = call i64 @llvm.smin.i64(i64 %40, i64 1000000000)
  %42 = call i64 @llvm.smax.i64(i64 %41, i64 20000000)
  store atomic i64 %42, ptr @avoid_for seq_cst, align 8
  %43 = load atomic i64, ptr @avoid_for seq_cst, align 8
  %44 = add nsw i64 %43, %19
  store atomic i64 %44, ptr @avoided seq_cst, align 8
  br label %45

45:                                               ; preds = %34, %37, %38
  %46 = load ptr, ptr %7, align 8
  %47 = icmp ne ptr %46, null
  %48 = icmp ne ptr @TVMFFIErrorSetRaised, null
  %49 = and i1 %48, %47
  br i1 %49, label %50, label %51

50:                                               ; preds = %45
  call void @TVMFFIErrorSetRaised(ptr noundef nonnull %46)
  br label %51

51:                                               ; preds = %50, %45
  %52 = load atomic i32, ptr %9 seq_cst, align 8
  ret i32 %52
}

define internal void @take_part(ptr noundef %0) {
  %2 = alloca %struct.timespec, align 8
  %3 = alloca %struct.ParallelGroup, align 8
  %4 = load ptr, ptr getelementptr inbounds nuw (i8, ptr @convtvm_team, i64 24), align 8
  %5 = tail call i32 %4()
  store ptr null, ptr %3, align 8
  %6 = getelementptr inbounds nuw i8, ptr %3, i64 8
  %7 = getelementptr inbounds nuw i8, ptr %0, i64 32
  %8 = load i32, ptr %7, align 8
  %9 = load ptr, ptr getelementptr inbounds nuw (i8, ptr @convtvm_team, i64 32), align 8
  %10 = tail call i32 %9()
  %11 = tail call noundef i32 @llvm.smin.i32(i32 %8, i32 %10)
  store i32 %11, ptr %6, align 8
  %12 = getelementptr inbounds nuw i8, ptr %3, i64 12
  store i32 0, ptr %12, align 4
  %13 = icmp slt i32 %5, %11
  br i1 %13, label %14, label %16

14:                                               ; preds = %1
  %15 = call fastcc i32 @begin(ptr noundef nonnull %0, i32 noundef %5, ptr noundef %3)
  br label %16

16:                                               ; preds = %14, %1
  %17 = icmp eq i32 %5, 0
  br i1 %17, label %18, label %38

18:                                               ; preds = %16
  %19 = load i32, ptr %6, align 8
  %20 = icmp sgt i32 %19, 1
  br i1 %20, label %21, label %23

21:                                               ; preds = %18
  %22 = getelementptr inbounds nuw i8, ptr %0, i64 36
  br label %31

23:                                               ; preds = %31, %18
  %24 = call i32 @clock_gettime(i32 noundef 1, ptr noundef nonnull %2)
  %25 = load i64, ptr %2, align 8
  %26 = mul nsw i64 %25, 1000000000
  %27 = getelementptr inbounds nuw i8, ptr %2, i64 8
  %28 = load i64, ptr %27, align 8
  %29 = add nsw i64 %26, %28
  %30 = getelementptr inbounds nuw i8, ptr %0, i64 24
  store i64 %29, ptr %30, align 8
  br label %38

31:                                               ; preds = %21, %31
  %32 = phi i32 [ %19, %21 ], [ %33, %31 ]
  %33 = add nsw i32 %32, -1
  %34 = call fastcc i32 @begin(ptr noundef nonnull %0, i32 noundef %33, ptr noundef %3)
  %35 = load i32, ptr %22, align 4
  %36 = add nsw i32 %35, %34
  store i32 %36, ptr %22, align 4
  %37 = icmp samesign ugt i32 %32, 2
  br i1 %37, label %31, label %23

38:                                               ; preds = %16, %23
  ret void
}

define internal fastcc range(i32 0, 2) i32 @begin(ptr noundef %0, i32 noundef %1, ptr noundef nonnull %2) unnamed_addr {
  %4 = getelementptr inbounds nuw i8, ptr %0, i64 44
  %5 = sext i32 %1 to i64
  %6 = getelementptr inbounds [1024 x i8], ptr %4, i64 0, i64 %5
  %7 = atomicrmw xchg ptr %6, i8 1 seq_cst, align 1
  %8 = icmp eq i8 %7, 0
  br i1 %8, label %9, label %23

9:                                                ; preds = %3
  %10 = load ptr, ptr %0, align 8
  %11 = getelementptr inbounds nuw i8, ptr %0, i64 8
  %12 = load ptr, ptr %11, align 8
  %13 = tail call i32 %10(i32 noundef %1, ptr noundef nonnull %2, ptr noundef %12)
  %14 = icmp eq i32 %13, 0
  br i1 %14, label %23, label %15

15:                                               ; preds = %9
  %16 = getelementptr inbounds nuw i8, ptr %0, i64 40
  %17 = cmpxchg ptr %16, i32 0, i32 %13 seq_cst seq_cst, align 8
  %18 = extractvalue { i32, i1 } %17, 1
  %19 = icmp ne ptr @TVMFFIErrorMoveFromRaised, null
  %20 = and i1 %19, %18
  br i1 %20, label %21, label %23

21:                                               ; preds = %15
  %22 = getelementptr inbounds nuw i8, ptr %0, i64 16
  tail call void @TVMFFIErrorMoveFromRaised(ptr noundef nonnull %22)
  br label %23

23:                                               ; preds = %9, %15, %21, %3
  %24 = phi i32 [ 0, %3 ], [ 1, %21 ], [ 1, %15 ], [ 1, %9 ]
  ret i32 %24
}

declare i32 @bcmp(ptr, ptr, i64) local_unnamed_addr

declare i32 @llvm.smin.i32(i32, i32)

declare i64 @llvm.smin.i64(i64, i64)

declare i64 @llvm.smax.i64(i64, i64)
